"""A live view for a terminal: progress, accuracy curve, bytes, where the time goes, time left."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flora_hpc.observers._facts import facts
from flora_hpc.records import views
from flora_hpc.records.known import RoundRecord, RunInfo
from flora_hpc.records.schema import ROUNDS


def heading(facts: dict[str, str]) -> Text:
    """One line per fact, names aligned."""
    lines = (Text.assemble((f"{name:>{max(map(len, facts))}}  ", "dim"), value) for name, value in facts.items())
    return Text("\n").join(lines)


class Terminal:
    """Redraws one panel after every round."""

    def __init__(self, folder: Path, console: Console | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._folder, self._console, self._clock = folder, console or Console(force_terminal=True), clock
        self._live = Live(console=self._console, refresh_per_second=4)
        self._rounds = np.zeros(0, ROUNDS)
        self._facts: dict[str, str] = {}
        self._num_rounds, self._started, self._before = 0, 0.0, 0

    def started(self, info: RunInfo) -> None:
        self._facts, self._num_rounds = facts(info), info.num_rounds
        self._console.print(heading(self._facts | {"set up": views.seconds(info.setup_seconds)}))
        self._started = self._clock()
        if info.earlier:
            self._rounds = info.earlier.rounds
        self._before = int(self._rounds["round"].max(initial=0))
        self._live.start()

    def round(self, record: RoundRecord) -> None:
        self._rounds = np.concatenate([self._rounds, record.row])
        self._live.update(self.view())

    def view(self) -> Panel:
        """All that is known so far, as one panel."""
        width = max(20, min(self._console.width, 100) - 12)
        now, trained = self._rounds[-1], self._rounds[self._rounds["round"] > 0]
        done, elapsed = int(now["round"]), self._clock() - self._started
        played = done - self._before  # since this start
        left = elapsed / played * (self._num_rounds - done) if played else None
        head = Text.assemble(
            ("round ", "dim"), (f"{done}/{self._num_rounds}", "bold"),
            ("   elapsed ", "dim"), views.seconds(elapsed),
            ("   left ", "dim"), "?" if left is None else "none" if done == self._num_rounds else views.seconds(left),
        )  # fmt: skip
        parts: list[RenderableType] = [head, ProgressBar(max(1, self._num_rounds), done, width=width + 6), Text()]
        measured = views.accuracies(self._rounds)["test_accuracy"]
        if len(measured):
            parts += [Text("test accuracy", "dim"), views.curve(measured.tolist(), width)]
        numbers = Table.grid(padding=(0, 3))
        numbers.add_row(
            Text.assemble(("accuracy ", "dim"), (f"{measured[-1]:.4f}" if len(measured) else "-", "bold green")),
            Text.assemble(("loss ", "dim"), "-" if np.isnan(now["train_loss"]) else f"{now['train_loss']:.4f}"),
            Text.assemble(("up ", "dim"), decimal(int(trained["uplink_bytes"].sum()))),
            Text.assemble(("down ", "dim"), decimal(int(trained["downlink_bytes"].sum()))),
            Text.assemble(("ranks sent ", "dim"), decimal(int(trained["collective_bytes"].sum()))),
        )
        parts += [Text(), numbers]
        if len(trained):
            parts += [Text(), Text("where the time goes", "dim"), views.time_split(trained, width + 6)]
        if rejected := int(self._rounds["num_rejected"].sum()):
            parts.append(Text(f"{rejected} client updates were not finite or too large and were left out", "red"))
        return Panel(Group(*parts), title="flora-hpc", title_align="left", border_style="dim")

    def ended(self, status: str) -> None:
        self._live.stop()
        if len(self._rounds):
            self._console.print(views.summary(self._rounds, self._facts, f"run {status}", f"in {self._folder}"))


def build(folder: Path) -> Terminal:
    return Terminal(folder)
