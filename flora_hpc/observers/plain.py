"""One plain line a round, for log files; a closing table at the end."""

from pathlib import Path

import numpy as np
from rich.console import Console

from flora_hpc.records import views
from flora_hpc.records.known import RoundRecord, RunInfo
from flora_hpc.records.schema import ROUNDS
from flora_hpc.records.sentences import describe_start
from flora_hpc.records.summary import summary


class Plain:
    """Lines that stay readable when several jobs' logs are searched with grep."""

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        self._folder, self._console = folder, console or Console(highlight=False)
        self._rounds = np.zeros(0, ROUNDS)
        self._description: dict[str, str] = {}
        self._num_rounds = 0

    def started(self, info: RunInfo) -> None:
        self._description, self._num_rounds = describe_start(info), info.num_rounds
        for name, value in self._description.items():
            self._say(f"{name}: {value}")
        for sentence in info.warnings:
            self._say(f"warning: {sentence}")
        self._say(f"set up in {views.seconds(info.setup_seconds)}; writing to {self._folder}")
        if info.earlier:
            self._rounds = info.earlier.rounds

    def round(self, record: RoundRecord) -> None:
        self._rounds = np.concatenate([self._rounds, record.row])
        self._say(views.line(record.row[0], self._num_rounds))

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def ended(self, status: str) -> None:
        if len(self._rounds):
            table = summary(self._console, self._rounds, self._description, f"run {status}", views.ending(status, self._folder))
            self._console.print(table)


def build(folder: Path) -> Plain:
    return Plain(folder)
