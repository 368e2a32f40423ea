"""Pairs from a table (CSV or TSV) or from lines of JSON, which name image files and their captions."""

import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from flora_hpc.data.datasets._files import columns, read
from flora_hpc.data.datasets._pairs import Pairs
from flora_hpc.data.images import Raw, stamp
from flora_hpc.data.texts import fault, from_json, shown
from flora_hpc.errors import UserError, did_you_mean
from flora_hpc.filekinds import ADDRESS, WINDOWS, kind

CELL = 2**31 - 1  # characters; csv's own limit of 131,072 is meant for guessing at files
PROBE = 100  # when not one of so many images exists, the folder is wrong, not the images
DELIMITERS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}  # what may divide cells, the likeliest first
SEPARATOR = re.compile(r'"?sep=(.)"?\s*')  # what Excel writes above the header

Row = dict[str, Any]


def pairs(key: str, path: Path, root: Path | None, image_column: str, caption_column: str) -> Pairs:
    """The pairs of one file, which option `key` names; images are relative to `root`. Raises UserError for a wrong file."""
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

    def raw(wanted: Sequence[int]) -> list[Raw]:
        return [read(files[row]) for row in wanted]

    def where(row: int) -> str:
        return f"{files[row]} (line {lines[row]} of {path.name})"

    known = columns([{"path": name} | row for name, row in zip(names, rows, strict=True)])
    return Pairs(captions, [os.path.realpath(file) for file in files], raw, where, known, lambda: stamp([path, *files]))


def _check(place: str, name: str, row: Row) -> None:
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
    """Refuse what can be no file of this machine."""
    if WINDOWS.match(text):
        raise UserError(f"{place}: '{name}' is {shown(text)}, a path of Windows; write paths relative to the table")
    if ADDRESS.match(text):
        raise UserError(
            f"{place}: '{name}' is {shown(text)}, an address; images must be files here: download them, such as with img2dataset, "
            "and write their paths"
        )


def _with_slashes(folder: Path, name: str) -> str:
    """The path of an image, whose backslashes are those of Windows unless there is such a file."""
    if "\\" not in name or os.path.exists(folder / name):  # noqa: PTH110 -- pathlib raises for names that are too long
        return name
    return name.replace("\\", "/")


def _lines(key: str, path: Path) -> Iterator[str]:
    """The lines of a text file, with their ends."""
    if (what := kind(path)) is not None:
        raise UserError(f"{key}: {path} is {what}; pairs come from text in UTF-8")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1 and b"\0" in line:
                raise UserError(f"{key}: {path} is not UTF-8 (perhaps UTF-16); save the file in that encoding")
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
            row = from_json(line)
        except ValueError as error:
            raise UserError(f"{key}: {path}: line {number} is not JSON ({error}); each line must be an object of its own") from None
        if not isinstance(row, dict):
            raise UserError(f"{key}: {path}: line {number} is {line.strip()[:40]}; each line must be an object of its own")
        yield number, row


def _table_rows(key: str, path: Path, columns_used: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Each row by the names of its columns, with the line it begins on."""
    lines = _lines(key, path)
    before, first, line = csv.field_size_limit(CELL), 1, 1
    try:
        text, given = next(lines, ""), None
        while text and (not text.strip() or SEPARATOR.fullmatch(text)):
            given = SEPARATOR.fullmatch(text) or given
            text, first = next(lines, ""), first + 1
        delimiter, header = _header(text, [given[1]] if given else DELIMITERS, columns_used)
        _check_header(f"{key}: {path}", path.parent, header)
        line, rows = first + 1, csv.reader(lines, delimiter=delimiter, strict=True)
        for cells in rows:
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{key}: {path}: line {line} has {len(cells)} cells, the header {len(header)}; "
                    f"put texts with {DELIMITERS.get(delimiter, delimiter)} in quotes"
                )
            if cells:
                yield line, dict(zip(header, cells, strict=True))
            line = rows.line_num + first + 1
    except csv.Error as error:
        cure = (
            "save it with line feeds at the ends of lines" if "new-line" in str(error) else "double the quotes within a quoted text"
        )
        raise UserError(f"{key}: {path}: line {line} cannot be read ({error}); {cure}") from None
    finally:
        csv.field_size_limit(before)


def _header(text: str, delimiters: Iterable[str], columns_used: Sequence[str]) -> tuple[str, list[str]]:
    """What divides cells, and the header's cells: the first delimiter that makes the columns that are used, else most cells."""
    headers = {sign: [cell.strip() for cell in next(csv.reader([text], delimiter=sign), [])] for sign in delimiters}
    fitting = [sign for sign, header in headers.items() if set(columns_used) <= set(header)]
    best = fitting[0] if fitting else max(headers, key=lambda sign: len(headers[sign]))
    return best, headers[best]


def _check_header(place: str, folder: Path, header: Sequence[str]) -> None:
    """Refuse a header that names a column twice, or that is a row of data."""
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise UserError(f"{place}: the header has the column {shown(twice[0])} twice; give each column a name of its own")
    if any(os.path.isfile(folder / cell) for cell in header):  # noqa: PTH113
        raise UserError(f"{place}: line 1 must name the columns, such as image,caption, but names a file; add a header")
