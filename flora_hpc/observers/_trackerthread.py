"""Logs a run to a tracker in a background thread, so that the tracker can neither stop nor delay the run."""

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

PATIENCE_SECONDS = 30.0  # grace period at the end of a run, for the last rounds on a slow network; all trackers share it
STOPPED_PATIENCE_SECONDS = 5.0  # a launcher that stops a run kills it soon
DROPPED = "left out"  # the status for a tracker that is dropped because it lags too far
MOST_WAITING = 1000  # rounds


class TrackerThread:
    """An Observer that forwards to a tracker. A tracker that raises, hangs or lags is dropped, and a line on stderr says why.

    A resumed run logs the rounds that the tracker has missed, and no round twice.
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
        self._queue: queue.Queue[Rows | str] = queue.Queue(most_waiting)  # rounds, and at the end the status
        self._thread: threading.Thread | None = None
        self._dropped = False

    def started(self, info: RunInfo) -> None:
        start = Start(self._folder, parameters(info), info.earlier is not None)
        earlier = [info.earlier.rounds[i : i + 1] for i in range(len(info.earlier.rounds))] if info.earlier else []
        # a daemon: a tracker that hangs does not keep the process alive
        self._thread = threading.Thread(target=self._log_all, args=(start, earlier), name=self._name, daemon=True)
        self._thread.start()

    def round(self, record: RoundRecord) -> None:
        self._put(record.row.copy())

    def ended(self, status: str) -> None:
        self.send_end(status)
        self.wait(self._patience)

    def send_end(self, status: str) -> None:
        """Pass the status to the thread, and return at once."""
        if self._thread is not None:
            self._put(status)

    def wait(self, seconds: float) -> None:
        """Return when the tracker has taken everything, after `seconds` at most."""
        if self._thread is not None and not self._dropped:
            self._thread.join(seconds)
            if self._thread.is_alive():
                self._drop(f"has not taken the last of it within {seconds:.2g} s")

    def _put(self, item: Rows | str) -> None:
        if not self._dropped:
            try:
                self._queue.put_nowait(item)
            except queue.Full:
                self._drop(f"is {self._queue.maxsize:,} rounds behind")
                with suppress(queue.Empty):
                    while True:
                        self._queue.get_nowait()
                self._queue.put_nowait(DROPPED)  # so that the tracker may close its run

    def _log_all(self, start: Start, earlier: list[Rows]) -> None:
        """The thread: every call of the tracker."""
        try:
            logged_rounds = set(self._tracker.start(start))
            for row in earlier:
                self._log(row, logged_rounds)
            while not isinstance(item := self._queue.get(), str):
                self._log(item, logged_rounds)
            self._tracker.end(item)
        except BaseException as error:  # some packages raise SystemExit and the like
            self._drop(" ".join(f"{type(error).__name__}: {error}".split())[:300])

    def _log(self, row: Rows, logged_rounds: set[int]) -> None:
        if int(row["round"][0]) not in logged_rounds and not self._dropped:
            self._tracker.log(row)

    def _drop(self, why: str) -> None:
        if not self._dropped:
            self._dropped = True
            print(f"warning: {self._name} is left out from here on ({why}); run.h5 has everything", file=sys.stderr, flush=True)


class Trackers:
    """All trackers of a run, as one Observer: they share the grace period at its end."""

    def __init__(self, threads: Sequence[TrackerThread]) -> None:
        self._threads = threads

    def started(self, info: RunInfo) -> None:
        for thread in self._threads:
            thread.started(info)

    def round(self, record: RoundRecord) -> None:
        for thread in self._threads:
            thread.round(record)

    def ended(self, status: str) -> None:
        for thread in self._threads:
            thread.send_end(status)
        deadline = time.monotonic() + (STOPPED_PATIENCE_SECONDS if status == "stopped" else PATIENCE_SECONDS)
        for thread in self._threads:
            thread.wait(max(0.0, deadline - time.monotonic()))


def build(names: Sequence[str], folder: Path) -> Trackers:
    """Build the trackers with these names, each once."""
    return Trackers([plugins.member("observers", name).build(folder) for name in dict.fromkeys(names)])
