"""Read tables of text: a header and rows, with cells divided by commas, tabs, semicolons or bars."""

import csv
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path

from flora_hpc.data.texts import shown
from flora_hpc.errors import UserError, reason
from flora_hpc.filekinds import kind

CELL = 2**31 - 1  # most characters of a cell; csv's default is 131,072
DELIMITERS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}  # between cells, the likeliest first
SEPARATOR = re.compile(r'"?sep=(.)"?\s*')  # a line that Excel writes above the header


def lines(key: str, path: Path, purpose: str, errors: str = "strict") -> Iterator[str]:
    """The lines of a UTF-8 text file, with line ends. Messages name the option `key` of the file, and start a hint with `purpose`.

    `errors="surrogateescape"` keeps bytes that are not UTF-8. Otherwise they raise UserError.
    """
    if (what := kind(path)) is not None:
        raise UserError(f"{key}: {path} is {what}; {purpose} text in UTF-8")
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1 and b"\0" in line:
                    raise UserError(f"{key}: {path} is not UTF-8 (perhaps UTF-16); save the file in that encoding")
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8", errors)
                except UnicodeDecodeError:
                    raise UserError(f"{key}: {path}: line {number} is not UTF-8; save the file in that encoding") from None
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read ({reason(error)}); make it readable") from None


def rows(
    key: str, path: Path, columns_used: Sequence[str], purpose: str, errors: str = "strict"
) -> Generator[tuple[int, list[str]], None, None]:
    """The header and then each row, with its line number. All rows have as many cells as the header. See `lines` for the arguments.

    The delimiter is the first one that gives the header all `columns_used`. Close the generator if you do not read all rows: it
    raises the limit that `csv` has for the length of cells until then.
    """
    texts = lines(key, path, purpose, errors)
    old_limit, first, line = csv.field_size_limit(CELL), 1, 1
    try:
        text, separator = next(texts, ""), None
        while text and (not text.strip() or SEPARATOR.fullmatch(text)):
            separator = SEPARATOR.fullmatch(text) or separator
            text, first = next(texts, ""), first + 1
        delimiter, header = _header(text, [separator[1]] if separator else DELIMITERS, columns_used)
        if twice := [name for name in header if name and header.count(name) > 1]:
            raise UserError(f"{key}: {path}: the header has the column {shown(twice[0])} twice; give each column a name of its own")
        yield first, header
        line, reader = first + 1, csv.reader(texts, delimiter=delimiter, strict=True)
        for cells in reader:
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{key}: {path}: line {line} has {len(cells)} cells, the header {len(header)}; "
                    f"put texts with {DELIMITERS.get(delimiter, delimiter)} in quotes"
                )
            if cells:
                yield line, cells
            line = reader.line_num + first + 1
    except csv.Error as error:
        cure = (
            "save it with line feeds at the ends of lines" if "new-line" in str(error) else "double the quotes within a quoted text"
        )
        raise UserError(f"{key}: {path}: line {line} cannot be read ({error}); {cure}") from None
    finally:
        csv.field_size_limit(old_limit)


def _header(text: str, delimiters: Iterable[str], columns_used: Sequence[str]) -> tuple[str, list[str]]:
    """The delimiter and the header's cells: the first delimiter that gives all used columns, else the one with most cells."""
    headers = {sign: [cell.strip() for cell in next(csv.reader([text], delimiter=sign), [])] for sign in delimiters}
    fitting = [sign for sign, header in headers.items() if set(columns_used) <= set(header)]
    best = fitting[0] if fitting else max(headers, key=lambda sign: len(headers[sign]))
    return best, headers[best]
