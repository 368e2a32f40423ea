"""Tracker: /rounds as rounds.csv in the run directory, a line a round; needs nothing."""

import csv
from collections.abc import Collection
from pathlib import Path
from typing import Any, TextIO

from flora_hpc.observers._tracker import Start
from flora_hpc.observers._trackerthread import TrackerThread
from flora_hpc.records.schema import ROUNDS, Rows

PACKAGE = None
COLUMNS = ROUNDS.names or ()


class Csv:
    """A file that a resumed run writes anew: run.h5 has every round."""

    _file: TextIO
    _lines: Any  # a csv.writer

    def start(self, run: Start) -> Collection[int]:
        self._file = (run.folder / "rounds.csv").open("w", newline="", encoding="utf-8")
        self._lines = csv.writer(self._file, lineterminator="\n")
        self._lines.writerow(COLUMNS)
        return ()

    def log(self, row: Rows) -> None:
        values = (row[name][0].item() if name in (row.dtype.names or ()) else "" for name in COLUMNS)
        self._lines.writerow("" if value != value else value for value in values)  # a number that was not measured is NaN
        self._file.flush()

    def end(self, status: str) -> None:
        self._file.close()


def build(folder: Path) -> TrackerThread:
    return TrackerThread("csv", folder, Csv())
