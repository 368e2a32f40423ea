"""What a tracker is: it keeps a run's numbers, beside run.h5, where somebody looks at many runs.

A file in this folder with `PACKAGE` is one: the package that it needs, None for none. Its name is what users write after --track.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flora_hpc import extras, plugins, yamltext
from flora_hpc.errors import UserError, did_you_mean
from flora_hpc.records.known import RunInfo
from flora_hpc.records.schema import Rows
from flora_hpc.records.sentences import flat

GROUPS = ("seconds", "bytes", "accuracy", "loss", "num")  # a word of a column's name; trackers show what is before a slash together


@dataclass(frozen=True)
class Start:
    """What a tracker is told of a run, once."""

    folder: Path  # the run's
    parameters: dict[str, Any]  # the configuration, its keys dotted, and facts that it does not hold
    goes_on: bool  # after it was stopped or killed; `folder` may hold what the tracker wrote then


class Tracker(Protocol):
    """Called in this order, in one thread. It may raise anything, and take its time: the run goes on."""

    def start(self, run: Start) -> Collection[int]:
        """Returns the rounds that it holds already: they are not told again."""

    def log(self, row: Rows) -> None:
        """`row` is one of /rounds, shape (1,)."""

    def end(self, status: str) -> None: ...


def parameters(info: RunInfo) -> dict[str, Any]:
    """What was run: {'client.lr': 5e-05, ..., 'run.world_size': 2}."""
    facts = ("dataset", "world_size", "launcher", "backend", "num_params", "payload_bytes")
    found = {f"run.{name}": getattr(info, name) for name in facts}
    return flat(yamltext.parse(info.config)) | found | flat({"versions": info.versions})


def numbers(row: Rows) -> dict[str, float]:
    """A row of /rounds as trackers name it: {'accuracy/test': 0.9, 'seconds/train': 1.5, ...}, what was not measured left out."""
    found = {}
    for name in row.dtype.names or ():
        words = name.split("_")
        group = next((group for group in GROUPS if group in words), None)
        value = float(row[name][0])
        if group and np.isfinite(value):
            words.remove(group)
            found[f"{group}/{'_'.join(words)}"] = value
    return found


class Bookmark:
    """Under which name a tracker knows a run, in a file of the run directory: one that goes on is the same run there."""

    def __init__(self, path: Path, where: str) -> None:
        self._path, self._where = path, where

    def read(self) -> dict[str, Any]:
        """What `write` wrote for the same place; empty for another one, and when there is none."""
        try:
            held: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return held if held.get("where") == self._where else {}

    def write(self, **facts: Any) -> None:
        part = self._path.with_name(f"{self._path.name}.part")
        part.write_text(json.dumps({"where": self._where} | facts), encoding="utf-8")
        part.replace(self._path)


def names() -> list[str]:
    """Names of all trackers, sorted."""
    return [name for name in plugins.members("observers") if hasattr(plugins.member("observers", name), "PACKAGE")]


def check(wanted: Sequence[str]) -> None:
    """Raise UserError for a tracker that does not exist, or whose package is not installed. Nothing large is imported for it."""
    for name in wanted:
        if name not in (known := names()):
            raise UserError(f"--track: no tracker '{name}'{did_you_mean(name, known)} ({', '.join(known)})")
        package = plugins.member("observers", name).PACKAGE
        if package:
            extras.need(f"--track {name}", package)
