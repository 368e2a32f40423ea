"""Tells a tracker about a run in a thread of its own, so that nothing it does can stop the run or hold it up."""

import queue
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flora_hpc import plugins
from flora_hpc.observers._tracker import Start, Tracker, parameters
from flora_hpc.records.known import RoundRecord, RunInfo
from flora_hpc.records.schema import Rows

PATIENCE_SECONDS = 30.0  # at the end of a run: what a slow network may take for the last rounds, of all trackers together
STOPPED_PATIENCE_SECONDS = 5.0  # a launcher that stops a run kills it soon
LEFT_OUT = "left out"  # the status that one is told of that lags too far
MOST_WAITING = 1000  # rounds


class TrackerThread:
    """An Observer that passes on to a tracker. When that raises, hangs or lags, a line says so, and it is told nothing more.

    A run that goes on tells it of the rounds that it has missed, and of none twice.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        tracker: Tracker,
        patience_seconds: float = PATIENCE_SECONDS,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._name, self._folder, self._tracker, self._patience = name, folder, tracker, patience_seconds
        self._news: queue.Queue[Rows | str] = queue.Queue(most_waiting)  # rounds, and at last the status
        self._teller: threading.Thread | None = None
        self._left_out = False

    def started(self, info: RunInfo) -> None:
        start = Start(self._folder, parameters(info), info.earlier is not None)
        earlier = [info.earlier.rounds[i : i + 1] for i in range(len(info.earlier.rounds))] if info.earlier else []
        # a daemon, so that one that hangs does not keep the process
        self._teller = threading.Thread(target=self._tell, args=(start, earlier), name=self._name, daemon=True)
        self._teller.start()

    def round(self, record: RoundRecord) -> None:
        self._put(record.row.copy())

    def ended(self, status: str) -> None:
        self.say_end(status)
        self.wait(self._patience)

    def say_end(self, status: str) -> None:
        """Pass the status on, and return at once."""
        if self._teller is not None:
            self._put(status)

    def wait(self, seconds: float) -> None:
        """Return when the tracker has taken all, or after so long."""
        if self._teller is not None and not self._left_out:
            self._teller.join(seconds)
            if self._teller.is_alive():
                self._leave_out(f"has not taken the last of it within {seconds:.2g} s")

    def _put(self, news: Rows | str) -> None:
        if not self._left_out:
            try:
                self._news.put_nowait(news)
            except queue.Full:
                self._leave_out(f"is {self._news.maxsize:,} rounds behind")
                with suppress(queue.Empty):
                    while True:
                        self._news.get_nowait()
                self._news.put_nowait(LEFT_OUT)  # so that it may close its run there

    def _tell(self, start: Start, earlier: list[Rows]) -> None:
        """The thread: all that the tracker is ever told."""
        try:
            held = set(self._tracker.start(start))
            for row in earlier:
                self._log(row, held)
            while not isinstance(news := self._news.get(), str):
                self._log(news, held)
            self._tracker.end(news)
        except BaseException as error:  # some packages raise SystemExit and the like
            self._leave_out(" ".join(f"{type(error).__name__}: {error}".split())[:300])

    def _log(self, row: Rows, held: set[int]) -> None:
        if int(row["round"][0]) not in held and not self._left_out:
            self._tracker.log(row)

    def _leave_out(self, why: str) -> None:
        if not self._left_out:
            self._left_out = True
            print(f"warning: {self._name} is left out from here on ({why}); run.h5 has everything", file=sys.stderr, flush=True)


class Trackers:
    """All trackers of a run, as one Observer: they share the time at its end."""

    def __init__(self, asides: Sequence[TrackerThread]) -> None:
        self._asides = asides

    def started(self, info: RunInfo) -> None:
        for aside in self._asides:
            aside.started(info)

    def round(self, record: RoundRecord) -> None:
        for aside in self._asides:
            aside.round(record)

    def ended(self, status: str) -> None:
        for aside in self._asides:
            aside.say_end(status)
        until = time.monotonic() + (STOPPED_PATIENCE_SECONDS if status == "stopped" else PATIENCE_SECONDS)
        for aside in self._asides:
            aside.wait(max(0.0, until - time.monotonic()))


def build(names: Sequence[str], folder: Path) -> Trackers:
    """The trackers with these names, each once."""
    return Trackers([plugins.member("observers", name).build(folder) for name in dict.fromkeys(names)])
