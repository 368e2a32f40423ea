"""A live view for a terminal: progress, accuracy curve, bytes, where the time goes, time left."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.panel import Panel

from flora_hpc.records import views
from flora_hpc.records.known import RoundRecord, RunInfo
from flora_hpc.records.panel import PanelData, Progress, heading, panel
from flora_hpc.records.schema import ROUNDS
from flora_hpc.records.sentences import describe_start
from flora_hpc.records.summary import summary

PER_SECOND = 2  # redraws; each takes a millisecond or two of the processor that trains


class Terminal:
    """Redraws one panel while the rounds are played."""

    def __init__(self, folder: Path, console: Console | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._folder, self._console, self._clock = folder, console or Console(force_terminal=True), clock
        self._rounds = np.zeros(0, ROUNDS)
        self._description: dict[str, str] = {}
        self._num_rounds, self._resumed_after, self._last = 0, -1, self._clock()
        self._progress: Progress | None = None
        self._live = Live(console=self._console, refresh_per_second=PER_SECOND, get_renderable=self.view)

    def started(self, info: RunInfo) -> None:
        self._description, self._num_rounds = describe_start(info), info.num_rounds
        self._console.print(heading(self._description | {"set up": views.seconds(info.setup_seconds)}))
        for sentence in info.warnings:
            self._console.print(f"warning: {sentence}", style="yellow", markup=False, soft_wrap=True)
        self._last = self._clock()
        if info.earlier:
            self._rounds, self._resumed_after = info.earlier.rounds, info.earlier.resumed_after[-1]
        self._live.start()

    def trained(self, done: int, num_local: int, cohort: int) -> None:
        """Note the clients done; the thread that trains calls this, another thread draws."""
        self._progress = Progress(done, num_local, cohort)

    def round(self, record: RoundRecord) -> None:
        self._rounds, self._last = np.concatenate([self._rounds, record.row]), self._clock()

    def view(self) -> Panel:
        """The panel of the run so far."""
        since = self._clock() - self._last
        data = PanelData(self._rounds, self._num_rounds, self._resumed_after, since, self._progress)
        return panel(data, *self._console.size)

    def ended(self, status: str) -> None:
        self._last, self._progress = self._clock(), None
        self._live.stop()
        if len(self._rounds):
            table = summary(self._console, self._rounds, self._description, f"run {status}", views.ending(status, self._folder))
            self._console.print(table)


def build(folder: Path) -> Terminal:
    return Terminal(folder)
