"""Follows a run.h5 that another process writes: looks again and again, reads what is new."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file
from flora_hpc.records.schema import Rows
from flora_hpc.records.views import seconds

PATIENCE = 10  # looks in a row at which a file that could be read once cannot


@dataclass(frozen=True)
class Look:
    """A run at one moment."""

    attributes: dict[str, Any]
    rounds: Rows
    topology: Rows
    silent: float  # seconds since the file last changed

    @property
    def status(self) -> str:
        """What the file says of itself; a killed run says 'running' for ever."""
        return str(self.attributes["status"])

    @property
    def num_rounds(self) -> int:
        """Rounds that it is meant to have."""
        return int(yaml.safe_load(self.attributes["config"])["rounds"])

    @property
    def resumed_after(self) -> int:
        """The last round before it was started last; -1 for none."""
        resumed: list[int] = json.loads(self.attributes.get("resumed_after", "[]"))
        return resumed[-1] if resumed else -1

    @property
    def doubt(self) -> str:
        """That a run may have been killed, when it has been silent for long; else nothing."""
        usual = float(np.median(self.rounds["round_seconds"])) if len(self.rounds) else 0.0
        if self.status != "running" or self.silent < max(60.0, 5 * usual):
            return ""
        return f"last written {seconds(self.silent)} ago; its job may have been killed"


class Followed:
    """A run's file, opened anew when it has changed: by its writer, or by a run that goes on and puts a new one in its place."""

    def __init__(self, run: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = run if run.suffix == ".h5" or run.is_file() else run / "run.h5"
        self._clock = clock
        self._key: tuple[int, ...] = ()
        self._changed, self._failures = 0.0, 0
        self._last: tuple[dict[str, Any], dict[str, Rows]] | None = None

    def look(self) -> Look | None:
        """The run now; None while there is none. Raises UserError for a file that is not a run's."""
        try:
            found = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        key = (found.st_ino, found.st_mtime_ns, found.st_size)
        if key != self._key:
            self._read(key, found.st_mtime)
        if self._last is None:
            return None
        attributes, tables = self._last
        return Look(attributes, tables["rounds"], tables["topology"], max(0.0, self._clock() - self._changed))

    def _read(self, key: tuple[int, ...], written: float) -> None:
        try:
            self._last = hdf5file.read(self.path, ("rounds", "topology"))
        except UserError:
            self._failures += 1
            if self._last is None or self._failures >= PATIENCE:
                raise
            return
        self._changed = self._clock() if self._key else min(self._clock(), written)  # clocks of nodes differ
        self._key, self._failures = key, 0
