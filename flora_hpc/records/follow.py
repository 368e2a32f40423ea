"""Follows a run.h5 that another process writes: looks again and again, reads what is new."""

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

PATIENCE = 10  # looks in a row at which a file that could be read once cannot
TICK = 2.0  # seconds after a change in which another one may bear the same time
ROUNDS = 5  # of its longest, after which silence is suspicious
FIRST = 6  # times as patient before the first trained round, for nobody knows how long one takes


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
        return planned(self.attributes["config"])

    @property
    def resumed(self) -> tuple[int, ...]:
        """The last round before each time that it went on; -1 for none."""
        return tuple(json.loads(self.attributes.get("resumed_after", "[]")))

    @property
    def doubt(self) -> str:
        """That a run may have been killed, when it has been silent for a minute or more; else nothing."""
        return f"last written {seconds(self.silent)} ago; its job may have been killed" if self._silent_for(60.0) else ""

    def given_up(self, least: float) -> bool:
        """Whether a run has been silent for so long, `least` seconds or more, that nobody should wait for it."""
        return self._silent_for(least if (self.rounds["round"] > 0).any() else FIRST * least)

    def _silent_for(self, least: float) -> bool:
        """Whether it says that it runs, but has been silent for `least` seconds and longer than rounds take."""
        longest = float(self.rounds["round_seconds"].max(initial=0.0))
        return self.status == "running" and self.silent >= max(least, ROUNDS * longest)


@cache
def planned(config: str) -> int:
    """The number of rounds in a configuration."""
    return int(yamltext.parse(config)["rounds"])


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
        if key != self._key or self._clock() - self._changed < TICK:
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
        if key != self._key:
            self._changed = self._clock() if self._key else min(self._clock(), written)  # clocks of nodes differ
        self._key, self._failures = key, 0
