"""Follows a run.h5 that another process writes: polls the file and reads it when it has changed."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flora_hpc import yamltext
from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file
from flora_hpc.records.schema import Rows
from flora_hpc.records.views import seconds

PATIENCE = 10  # failed reads in a row, of a file that could be read before, until the error is raised
TICK = 2.0  # seconds after a change; a second change within them may have the same time stamp
ROUNDS = 5  # a run is suspicious when it is silent for as long as so many of its longest rounds
FIRST = 6  # factor on the patience before the first trained round: nobody knows how long a round takes


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at one moment."""

    attributes: dict[str, Any]
    rounds: Rows
    topology: Rows
    silent: float  # seconds since the file last changed

    @property
    def status(self) -> str:
        """The status in the file; a killed run stays 'running'."""
        return str(self.attributes["status"])

    @property
    def num_rounds(self) -> int:
        """Planned number of rounds."""
        return planned(self.attributes["config"])

    @property
    def resumed(self) -> tuple[int, ...]:
        """The last round before each resume; -1 for none."""
        return tuple(json.loads(self.attributes.get("resumed_after", "[]")))

    @property
    def doubt(self) -> str:
        """A sentence that the run may have been killed, after a minute of silence or more; else empty."""
        return f"last written {seconds(self.silent)} ago; its job may have been killed" if self._silent_for(60.0) else ""

    def given_up(self, least: float) -> bool:
        """Whether nobody should wait for the run: it has been silent for `least` seconds or more."""
        return self._silent_for(least if (self.rounds["round"] > 0).any() else FIRST * least)

    def _silent_for(self, least: float) -> bool:
        """Whether the status is 'running', but the silence exceeds `least` seconds and the time of rounds."""
        longest = float(self.rounds["round_seconds"].max(initial=0.0))
        return self.status == "running" and self.silent >= max(least, ROUNDS * longest)


@cache
def planned(config: str) -> int:
    """The number of rounds in a configuration."""
    return int(yamltext.parse(config)["rounds"])


class FollowedRun:
    """The file of a run, read again when it has changed: by its writer, or by a resumed run, which replaces the file."""

    def __init__(self, run: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = run if run.suffix == ".h5" or run.is_file() else run / "run.h5"
        self._clock = clock
        self._key: tuple[int, ...] = ()
        self._changed, self._failures = 0.0, 0
        self._last: tuple[dict[str, Any], dict[str, Rows]] | None = None

    def poll(self) -> Snapshot | None:
        """The run now; None while there is no file. Raises UserError for a file that is not a run's."""
        try:
            stat = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        key = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if key != self._key or self._clock() - self._changed < TICK:
            self._read(key, stat.st_mtime)
        if self._last is None:
            return None
        attributes, tables = self._last
        return Snapshot(attributes, tables["rounds"], tables["topology"], max(0.0, self._clock() - self._changed))

    def _read(self, key: tuple[int, ...], mtime: float) -> None:
        try:
            self._last = hdf5file.read(self.path, ("rounds", "topology"))
        except UserError:
            self._failures += 1
            if self._last is None or self._failures >= PATIENCE:
                raise
            return
        if key != self._key:
            self._changed = self._clock() if self._key else min(self._clock(), mtime)  # clocks of nodes differ
        self._key, self._failures = key, 0
