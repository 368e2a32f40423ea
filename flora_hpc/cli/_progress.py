"""Progress of long work: a bar in a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

EVERY_SECONDS = 10.0  # between two lines of a log


class Bar:
    """A progress bar, updated with `bar(done, total)`. It appears with the first call and disappears when all is done."""

    def __init__(
        self, what: str, unit: str = "images", live: bool | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`unit` names the items; 'bytes' are printed as sizes. `live` is by default whether stderr is a terminal."""
        self._what, self._unit, self._clock = what, unit, clock
        self._live = sys.stderr.isatty() if live is None else live
        self._bar: Progress | None = None
        self._last_line = self._started = clock()

    def __call__(self, done: int, total: int) -> None:
        if self._live:
            self._draw(done, total)
        elif self._clock() - self._last_line >= EVERY_SECONDS or (0 < total <= done and self._last_line > self._started):
            self._last_line = self._clock()
            share = f" ({done / total:.0%})" if total else ""
            print(f"{self._what}: {self._text(done, total)}{share}", file=sys.stderr, flush=True)

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[count]}"),
            )
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True, force_terminal=True), transient=True)
            self._bar.add_task(self._what, count="")
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total or None, count=self._text(done, total))
        if total and done >= total:
            self.close()

    def close(self) -> None:
        """Take the bar away; a later call shows a new one."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _text(self, done: int, total: int) -> str:
        if self._unit == "bytes":
            return f"{decimal(done)} of {decimal(total)}" if total else decimal(done)
        return f"{done:,} of {total:,} {self._unit}"
