"""Read the table that names the client of each image. The lines are parsed, and not yet compared with the images."""

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
COLUMNS = ("row", "image")  # either column identifies the image of a line
NOBODY = -1
DIGITS = 18  # most digits of a whole number that surely fits 64 bits
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


@dataclass(frozen=True)
class ClientFile:
    """The content of a table. Arrays are (num_lines,), for the non-empty lines below the header."""

    path: Path
    by: str  # one of COLUMNS
    images: list[str]  # numbers or names of images
    places: list[str]  # the column path, if images are given by their rows; else empty
    lines: Ints  # number of each line in the file, from 1
    names: list[str]  # distinct clients, in the order in which they appear
    client_of: Ints  # index into `names`
    columns: dict[str, list[str]]  # other columns: the text of each of `names`; empty where its lines differ

    def at(self, index: int) -> str:
        """The beginning of a message about a line."""
        return f"{KEY}: {self.path}: line {self.lines[index]}"

    def image(self, index: int) -> str:
        """The image of a line, for messages."""
        return f"{self.by} {shown(self.images[index].strip())[1:-1]}"


def read(path: Path) -> ClientFile:
    """Read a table; names of images need not be UTF-8. Raises UserError for a table of another form."""
    with closing(csvtext.rows(KEY, path, ("client",), "clients come from", errors="surrogateescape")) as rows:
        table = _read(path, rows)
    _check_names(table)
    return table


def _read(path: Path, rows: Iterator[tuple[int, list[str]]]) -> ClientFile:
    """The table of `rows`: header and rows, each with the number of its first line."""
    _, header = next(rows)
    by = _by(path, header)
    client_column, image_column = header.index("client"), header.index(by)
    place_column = header.index("path") if by == "row" and "path" in header else None
    others = {name: column for column, name in enumerate(header) if name not in ("", "client", "path", *COLUMNS)}
    columns: dict[str, list[str]] = {name: [] for name in others}
    images, places, lines, client_of, numbers = [], [], array("q"), array("q"), dict[str, int]()
    for line, cells in rows:
        name = cells[client_column].strip()
        number = numbers.setdefault(name, len(numbers))
        client_of.append(number)
        for other, column in others.items():
            note(columns[other], number, cells[column].strip())
        lines.append(line)
        images.append(cells[image_column])
        if place_column is not None:
            places.append(cells[place_column])
    if not images:
        raise UserError(f"{KEY}: {path} has no line below its header; write a line with client and {by} for each image")
    return ClientFile(path, by, images, places, np.array(lines, np.int64), list(numbers), np.array(client_of, np.int64), columns)


def note(texts: list[str], number: int, text: str) -> None:
    """Note the text of a line about client `number` in `texts` of clients; an empty text where lines differ."""
    if number == len(texts):
        texts.append(text)
    elif texts[number] != text:
        texts[number] = ""


def _by(path: Path, header: list[str]) -> str:
    """The column that identifies images. Raises UserError unless the header has `client` and one such column."""
    if not any(header):
        raise UserError(f"{KEY}: {path} is empty; write a header such as client,row, and a line below it for each image")
    has = f"it has {shown(', '.join(header))[1:-1]}"
    if "client" not in header:
        raise UserError(f"{KEY}: {path}: the header has no column 'client'{did_you_mean('client', header)} ({has}); add it")
    image_columns = [name for name in COLUMNS if name in header]
    if not image_columns:
        raise UserError(
            f"{KEY}: {path}: the header has neither a column 'row' nor a column 'image' ({has}); "
            "add the one that says which image a line is about"
        )
    if len(image_columns) > 1:
        raise UserError(f"{KEY}: {path}: the header has both columns 'row' and 'image'; take one of them out")
    return image_columns[0]


def _check_names(table: ClientFile) -> None:
    """Refuse clients without a name, and names that are not UTF-8."""
    for number, name in enumerate(table.names):
        if not name or not (name.isascii() or fault(name) is None):
            place = table.at(int(np.argmax(table.client_of == number)))
            if not name:
                raise UserError(f"{place} has no client; fill it in, write -1 for nobody, or take the line out")
            raise UserError(f"{place}: the client {shown(name)} is not UTF-8; save the file in that encoding")


def numbered(names: list[str]) -> Ints:
    """The client number (num_names,) int64 of each name: 0, 1, ... in numeric order if all are numbers, else as they appear.

    -1 is NOBODY. If all names are numbers, 7, 07 and 7.0 are one client.
    """
    negative = [name for name in names if NUMBER.fullmatch(name) and name.startswith("-") and Decimal(name) not in (0, NOBODY)]
    if negative:
        raise UserError(f"{KEY}: client {negative[0]} is negative; number clients from 0, and give -1 for images that nobody holds")
    if all(map(NUMBER.fullmatch, names)):
        values = [int(name) if len(name) <= DIGITS and "." not in name else Decimal(name) for name in names]
        return _places(values, sorted(set(values) - {Decimal(NOBODY)}))
    return _places(names, [name for name in names if not (NUMBER.fullmatch(name) and Decimal(name) == NOBODY)])


def by_client(table: ClientFile, numbers: Ints, num_clients: int) -> dict[str, list[str]]:
    """The text of each client in each other column, (num_clients,) each, where `numbers` (num_names,) are those of the names."""
    columns: dict[str, list[str]] = {}
    for column, texts in table.columns.items():
        texts_of: list[set[str]] = [set() for _ in range(num_clients)]
        for number, text in zip(numbers.tolist(), texts, strict=True):
            if number != NOBODY:
                texts_of[number].add(text)
        columns[column] = [of_client.pop() if len(of_client) == 1 else "" for of_client in texts_of]
    return columns


def _places(values: Sequence[Hashable], clients: Sequence[Hashable]) -> Ints:
    """The index of each value in `clients`; NOBODY for values that are not in it."""
    numbers = {client: number for number, client in enumerate(clients)}
    return np.array([numbers.get(value, NOBODY) for value in values], np.int64)
