"""Reading /clients by round, by column and in pieces: it may be larger than the memory."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from flora_hpc.records.hdf5file import locate, opened, patiently
from flora_hpc.records.schema import Rows

PIECE_ROWS = 2**18  # some 20 MB


def of_rounds(run: Path, first: int, last: int, columns: Sequence[str] = ()) -> Rows:
    """The rows of rounds `first` to `last`, all columns or those of `columns` that the file has; no other row is read.

    Raises UserError like `hdf5file.read`.
    """

    def rows_of(file: h5py.File) -> Rows:
        table = file["clients"]
        return _read(table, _place(table, first, bisect_left), _place(table, last, bisect_right), columns)

    path = locate(run)
    return patiently(path, lambda: opened(path, rows_of))


def pieces(run: Path, last: int) -> Iterator[Rows]:
    """All rows up to round `last`, at most PIECE_ROWS at a time. Raises UserError like `hdf5file.read`."""
    path = locate(run)
    end = patiently(path, lambda: opened(path, lambda file: _place(file["clients"], last, bisect_right)))
    for start in range(0, end, PIECE_ROWS):
        stop = min(end, start + PIECE_ROWS)
        yield patiently(path, lambda start=start, stop=stop: opened(path, lambda file: _read(file["clients"], start, stop)))  # type: ignore[misc]


def _place(table: h5py.Dataset, number: int, search: Callable[..., int]) -> int:
    """The place of a round among the rows, whose rounds ascend."""
    return search(range(len(table)), number, key=lambda row: table[row]["round"])


def _read(table: h5py.Dataset, start: int, stop: int, columns: Sequence[str] = ()) -> Rows:
    names = [name for name in columns if name in (table.dtype.names or ())]
    return np.asarray((table.fields(names) if names else table)[start:stop])
