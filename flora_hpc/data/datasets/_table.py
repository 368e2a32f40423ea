"""Read pairs from a table (CSV or TSV) or from lines of JSON: paths of image files with captions."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from flora_hpc.data import csvtext
from flora_hpc.data.datasets._files import columns, read
from flora_hpc.data.datasets._pairs import Pairs
from flora_hpc.data.images import Raw, stamp
from flora_hpc.data.texts import fault, from_json, shown
from flora_hpc.errors import UserError, did_you_mean
from flora_hpc.filekinds import ADDRESS, WINDOWS

PROBE = 100  # if none of so many images exists, the folder is wrong
PURPOSE = "pairs come from"

Row = dict[str, Any]


def pairs(key: str, path: Path, root: Path | None, image_column: str, caption_column: str) -> Pairs:
    """Read the pairs of the file of option `key`; image paths are relative to `root`. Raises UserError for a wrong file."""
    lines, rows, columns_used = [], [], (image_column, caption_column)
    in_json = path.suffix.lower() in (".jsonl", ".ndjson")
    for line, row in _json_rows(key, path) if in_json else _table_rows(key, path, columns_used):
        for name in columns_used:
            _check(f"{key}: {path}: line {line}", name, row)
        _check_place(f"{key}: {path}: line {line}", image_column, row[image_column].strip())
        lines.append(line)
        rows.append(row)
    if not rows:
        raise UserError(f"{key}: {path} has no pairs; it needs a line for each image, with its caption")
    folder = path.parent if root is None else root
    names = [_with_slashes(folder, row.pop(image_column).strip()) for row in rows]
    files = [folder / name for name in names]
    if not any(os.path.isfile(file) for file in islice(files, PROBE)):  # noqa: PTH113 -- pathlib raises for names that are too long
        raise UserError(
            f"{key}: {path}: line {lines[0]}: there is no file {files[0]}; "
            "set data.images_root to the folder that images are relative to"
        )
    captions = [row.pop(caption_column).strip() for row in rows]

    def raw(numbers: Sequence[int]) -> list[Raw]:
        return [read(files[number]) for number in numbers]

    def where(row: int) -> str:
        return f"{files[row]} (line {lines[row]} of {path.name})"

    extra_columns = columns([{"path": name} | row for name, row in zip(names, rows, strict=True)])
    return Pairs(captions, [os.path.realpath(file) for file in files], raw, where, extra_columns, lambda: stamp([path, *files]))


def _check(place: str, name: str, row: Row) -> None:
    """Refuse a row without a usable text in the column `name`."""
    if name not in row:
        raise UserError(
            f"{place}: there is no '{name}'{did_you_mean(name, row)} (it has {shown(', '.join(row))[1:-1]}); "
            "data.image_column and data.caption_column say what they are called"
        )
    if not isinstance(row[name], str) or not row[name].strip():
        raise UserError(f"{place}: '{name}' must be a text, not {shown(row[name])}; fill it in or take the line out")
    if (sign := fault(row[name])) is not None:
        raise UserError(f"{place}: '{name}' holds {sign}; mend the text or take the line out")


def _check_place(place: str, name: str, text: str) -> None:
    """Refuse a Windows path and a URL."""
    if WINDOWS.match(text):
        raise UserError(f"{place}: '{name}' is {shown(text)}, a path of Windows; write paths relative to the table")
    if ADDRESS.match(text):
        raise UserError(
            f"{place}: '{name}' is {shown(text)}, an address; images must be files here: download them, such as with img2dataset, "
            "and write their paths"
        )


def _with_slashes(folder: Path, name: str) -> str:
    """The path of an image, with / for the \\ of Windows unless a file has that name."""
    if "\\" not in name or os.path.exists(folder / name):  # noqa: PTH110 -- pathlib raises for names that are too long
        return name
    return name.replace("\\", "/")


def _json_rows(key: str, path: Path) -> Iterator[tuple[int, Row]]:
    """The number and the JSON object of each line."""
    for number, line in enumerate(csvtext.lines(key, path, PURPOSE), 1):
        if not line.strip():
            continue
        try:
            row = from_json(line)
        except ValueError as error:
            raise UserError(f"{key}: {path}: line {number} is not JSON ({error}); each line must be an object of its own") from None
        if not isinstance(row, dict):
            raise UserError(f"{key}: {path}: line {number} is {line.strip()[:40]}; each line must be an object of its own")
        yield number, row


def _table_rows(key: str, path: Path, columns_used: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Each row as column -> cell, with the number of its first line."""
    rows = csvtext.rows(key, path, columns_used, PURPOSE)
    _, header = next(rows)
    if any(os.path.isfile(path.parent / cell) for cell in header):  # noqa: PTH113
        raise UserError(f"{key}: {path}: line 1 must name the columns, such as image,caption, but names a file; add a header")
    for line, cells in rows:
        yield line, dict(zip(header, cells, strict=True))
