"""Nothing during a run; one line at the end."""

from pathlib import Path

import numpy as np
from rich.console import Console

from flora_hpc.records import views
from flora_hpc.records.known import RoundRecord, RunInfo
from flora_hpc.records.schema import ROUNDS


class Quiet:
    """For many runs in one log: status, rounds, accuracy and folder of the run."""

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        self._folder, self._console = folder, console or Console(highlight=False)
        self._rounds = np.zeros(0, ROUNDS)
        self._num_rounds = 0

    def started(self, info: RunInfo) -> None:
        self._num_rounds = info.num_rounds
        for sentence in info.warnings:
            self._console.print(f"warning: {sentence}", markup=False, soft_wrap=True)
        if info.earlier:
            self._rounds = info.earlier.rounds

    def round(self, record: RoundRecord) -> None:
        self._rounds = np.concatenate([self._rounds, record.row])

    def ended(self, status: str) -> None:
        sentence = ", ".join(views.headline(self._rounds, f"run {status}", self._num_rounds))
        warning = f"; {views.unmoved(self._rounds)}" if views.unmoved(self._rounds) else ""
        self._console.print(f"{sentence}{warning}; {views.ending(status, self._folder)}", markup=False, soft_wrap=True)


def build(folder: Path) -> Quiet:
    return Quiet(folder)
