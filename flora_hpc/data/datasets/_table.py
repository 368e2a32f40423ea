"""Pairs from a table (CSV or TSV) or from lines of JSON, which name image files and their captions."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from flora_hpc.data.datasets._files import columns, read
from flora_hpc.data.datasets._pairs import Pairs
from flora_hpc.data.images import Raw, stamp
from flora_hpc.errors import UserError, did_you_mean

CELL = 2**31 - 1  # characters; csv's own limit of 131,072 is meant for guessing at files
PROBE = 100  # when not one of so many images exists, the folder is wrong, not the images

Row = dict[str, Any]


def pairs(key: str, path: Path, root: Path | None, image_column: str, caption_column: str) -> Pairs:
    """The pairs of one file, which option `key` names; images are relative to `root`. Raises UserError for a wrong file."""
    lines, rows = [], []
    read_rows = _json_rows if path.suffix.lower() in (".jsonl", ".ndjson") else _table_rows
    for line, row in read_rows(key, path):
        for name in (image_column, caption_column):
            _check(f"{key}: {path}: line {line}", name, row)
        lines.append(line)
        rows.append(row)
    if not rows:
        raise UserError(f"{key}: {path} has no pairs; it needs a line for each image, with its caption")
    folder = path.parent if root is None else root
    files = [folder / row[image_column].strip() for row in rows]
    if not any(file.is_file() for file in islice(files, PROBE)):
        raise UserError(
            f"{key}: {path}: line {lines[0]}: there is no file {files[0]}; "
            "set data.images_root to the folder that images are relative to"
        )
    names = [row.pop(image_column).strip() for row in rows]
    captions = [row.pop(caption_column).strip() for row in rows]

    def raw(wanted: Sequence[int]) -> list[Raw]:
        return [read(files[row]) for row in wanted]

    def where(row: int) -> str:
        return f"{files[row]} (line {lines[row]} of {path.name})"

    known = columns([{"path": name} | row for name, row in zip(names, rows, strict=True)])
    return Pairs(captions, [os.path.realpath(file) for file in files], raw, where, known, lambda: stamp([path, *files]))


def _check(place: str, name: str, row: Row) -> None:
    if name not in row:
        raise UserError(
            f"{place}: there is no '{name}'{did_you_mean(name, row)} (it has {', '.join(row)}); "
            "data.image_column and data.caption_column say what they are called"
        )
    if not isinstance(row[name], str) or not row[name].strip():
        raise UserError(f"{place}: '{name}' must be a text, not {row[name]!r}; fill it in or take the line out")


def _lines(key: str, path: Path) -> Iterator[str]:
    """The lines of a text file, with their ends."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{key}: {path}: line {number} is not UTF-8; save the file in that encoding") from None


def _json_rows(key: str, path: Path) -> Iterator[tuple[int, Row]]:
    """Each line's number and object."""
    for number, line in enumerate(_lines(key, path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{key}: {path}: line {number} is not JSON ({error}); each line must be an object of its own") from None
        if not isinstance(row, dict):
            raise UserError(f"{key}: {path}: line {number} is {line.strip()[:40]}; each line must be an object of its own")
        yield number, row


def _table_rows(key: str, path: Path) -> Iterator[tuple[int, Row]]:
    """Each row by the names of its columns, with the line it begins on. Tabs divide cells if they do the header, else commas."""
    lines = _lines(key, path)
    first = next(lines, "")
    delimiter = "\t" if "\t" in first else ","
    line, before = 2, csv.field_size_limit(CELL)
    try:
        header = next(csv.reader([first], delimiter=delimiter), [])
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        for cells in rows:
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{key}: {path}: line {line} has {len(cells)} cells, the header {len(header)}; put texts with commas in quotes"
                )
            if cells:
                yield line, dict(zip(header, cells, strict=True))
            line = rows.line_num + 2
    except csv.Error as error:
        raise UserError(f"{key}: {path}: line {line} cannot be read ({error}); double the quotes within a quoted text") from None
    finally:
        csv.field_size_limit(before)
