"""The tracker protocol: a tracker logs the numbers of a run, beside run.h5, to a service or files that compare many runs.

A file in this folder with `PACKAGE`, the package that it needs or None, is a tracker. Users write the file's name after --track.
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

# words of column names; trackers group numbers by the word before a slash
GROUPS = ("seconds", "bytes", "accuracy", "loss", "num", "decile", "global", "norm")


@dataclass(frozen=True)
class Start:
    """The facts about a run that a tracker gets once, at its start."""

    folder: Path  # the run's
    parameters: dict[str, Any]  # the configuration with dotted keys, and facts about the run
    resumed: bool  # `folder` may hold what the tracker wrote before


class Tracker(Protocol):
    """Called in this order, in one thread. A tracker may raise anything and be slow: the run does not stop or wait."""

    def start(self, run: Start) -> Collection[int]:
        """Start the run. Returns the rounds that the tracker has already; they are not logged again."""

    def log(self, row: Rows) -> None:
        """`row` is one of /rounds, shape (1,)."""

    def end(self, status: str) -> None: ...


def parameters(info: RunInfo) -> dict[str, Any]:
    """The settings of a run: {'client.lr': 5e-05, ..., 'run.world_size': 2}."""
    names = ("dataset", "world_size", "launcher", "backend", "num_params", "payload_bytes")
    facts = {f"run.{name}": getattr(info, name) for name in names}
    return flat(yamltext.parse(info.config)) | facts | flat({"versions": info.versions})


def numbers(row: Rows) -> dict[str, float]:
    """A row of /rounds as trackers name it: {'accuracy/test': 0.9, 'seconds/train': 1.5, ...}, without missing numbers."""
    values = {}
    for name in row.dtype.names or ():
        words = name.split("_")
        group = next((group for group in GROUPS if group in words), None)
        value = float(row[name][0])
        if group and np.isfinite(value):
            words.remove(group)
            values[f"{group}/{'_'.join(words)}"] = value
    return values


class RunIdFile:
    """The file of the run directory that keeps a tracker's run id: a resumed run keeps its id."""

    def __init__(self, path: Path, where: str) -> None:
        self._path, self._where = path, where

    def read(self) -> dict[str, Any]:
        """What `write` wrote for the same place; empty for another place, and without a file."""
        try:
            content: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if content.get("where") == self._where else {}

    def write(self, **facts: Any) -> None:
        part = self._path.with_name(f"{self._path.name}.part")
        part.write_text(json.dumps({"where": self._where} | facts), encoding="utf-8")
        part.replace(self._path)


def names() -> list[str]:
    """Names of all trackers, sorted."""
    return [name for name in plugins.members("observers") if hasattr(plugins.member("observers", name), "PACKAGE")]


def check(requested: Sequence[str]) -> None:
    """Raise UserError for a tracker that does not exist, or whose package is not installed. Nothing large is imported for it."""
    for name in requested:
        if name not in (trackers := names()):
            raise UserError(f"--track: no tracker '{name}'{did_you_mean(name, trackers)} ({', '.join(trackers)})")
        package = plugins.member("observers", name).PACKAGE
        if package:
            extras.need(f"--track {name}", package)
