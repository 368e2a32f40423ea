"""A text table that says which client holds which image: its lines as they are, before anyone looks at the images."""

import re
from array import array
from collections.abc import Hashable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np

from flora_hpc.data import csvtext
from flora_hpc.data.images import Ints
from flora_hpc.data.texts import fault, shown
from flora_hpc.errors import UserError, did_you_mean

KEY = "partition.path"
COLUMNS = ("row", "image")  # either says which image a line is about
NOBODY = -1
DIGITS = 18  # of a whole number that surely fits 64 bits
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


@dataclass(frozen=True)
class ClientFile:
    """What the lines of a table say. Arrays are (num_lines,), of the lines below the header that are not empty."""

    path: Path
    by: str  # one of COLUMNS
    images: list[str]  # numbers or names of images
    places: list[str]  # the column path where the images are given by their rows; empty without it
    lines: Ints  # number of each line in the file, from 1
    names: list[str]  # of clients, in the order in which they appear
    of: Ints  # index into `names`

    def at(self, index: int) -> str:
        """The beginning of a message about a line."""
        return f"{KEY}: {self.path}: line {self.lines[index]}"

    def image(self, index: int) -> str:
        """The image of a line, for people."""
        return f"{self.by} {shown(self.images[index].strip())[1:-1]}"


def read(path: Path) -> ClientFile:
    """Read a table, whose bytes need not be UTF-8 in names of images. Raises UserError for a table that is not of this form."""
    with closing(csvtext.rows(KEY, path, ("client",), "clients come from", errors="surrogateescape")) as rows:
        table = _read(path, rows)
    _check_names(table)
    return table


def _read(path: Path, rows: Iterator[tuple[int, list[str]]]) -> ClientFile:
    """The table whose header and rows, with the lines on which they begin, are `rows`."""
    _, header = next(rows)
    by = _by(path, header)
    client_column, image_column = header.index("client"), header.index(by)
    place_column = header.index("path") if by == "row" and "path" in header else None
    images, places, lines, of, numbers = [], [], array("q"), array("q"), dict[str, int]()
    for line, cells in rows:
        name = cells[client_column].strip()
        of.append(numbers.setdefault(name, len(numbers)))
        lines.append(line)
        images.append(cells[image_column])
        if place_column is not None:
            places.append(cells[place_column])
    if not images:
        raise UserError(f"{KEY}: {path} has no line below its header; write a line with client and {by} for each image")
    return ClientFile(path, by, images, places, np.array(lines, np.int64), list(numbers), np.array(of, np.int64))


def _by(path: Path, header: list[str]) -> str:
    """The column that says which image a line is about."""
    if not any(header):
        raise UserError(f"{KEY}: {path} is empty; write a header such as client,row, and a line below it for each image")
    has = f"it has {shown(', '.join(header))[1:-1]}"
    if "client" not in header:
        raise UserError(f"{KEY}: {path}: the header has no column 'client'{did_you_mean('client', header)} ({has}); add it")
    given = [name for name in COLUMNS if name in header]
    if not given:
        raise UserError(
            f"{KEY}: {path}: the header has neither a column 'row' nor a column 'image' ({has}); "
            "add the one that says which image a line is about"
        )
    if len(given) > 1:
        raise UserError(f"{KEY}: {path}: the header has both columns 'row' and 'image'; take one of them out")
    return given[0]


def _check_names(table: ClientFile) -> None:
    """Refuse clients without a name, and names that are not UTF-8."""
    for number, name in enumerate(table.names):
        if not name or not (name.isascii() or fault(name) is None):
            place = table.at(int(np.argmax(table.of == number)))
            if not name:
                raise UserError(f"{place} has no client; fill it in, write -1 for nobody, or take the line out")
            raise UserError(f"{place}: the client {shown(name)} is not UTF-8; save the file in that encoding")


def numbered(names: list[str]) -> Ints:
    """The client number (num_names,) int64 of each name: 0, 1, ... in numeric order where all are numbers, else as they appear.

    -1 is NOBODY. 7, 07 and 7.0 are one client where all are numbers.
    """
    if all(map(NUMBER.fullmatch, names)):
        values = [int(name) if len(name) <= DIGITS and "." not in name else Decimal(name) for name in names]
        return _places(values, sorted(set(values) - {Decimal(NOBODY)}))
    return _places(names, [name for name in names if name != str(NOBODY)])


def _places(values: Sequence[Hashable], clients: Sequence[Hashable]) -> Ints:
    """Where each value stands among the clients; NOBODY where it does not."""
    numbers = {client: number for number, client in enumerate(clients)}
    return np.array([numbers.get(value, NOBODY) for value in values], np.int64)
