"""Tells a tracker about a run in a thread of its own, so that nothing it does can stop the run or hold it up."""

import queue
import sys
import threading
from pathlib import Path

from flora_hpc.observers._tracker import Start, Tracker, parameters
from flora_hpc.records.known import RoundRecord, RunInfo
from flora_hpc.records.schema import Rows

PATIENCE_SECONDS = 30.0  # at the end of a run: what a slow network may take for the last rounds
MOST_WAITING = 1000  # rounds


class Aside:
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
        if self._teller is None:
            return
        self._put(status)
        if not self._left_out:
            self._teller.join(self._patience)
            if self._teller.is_alive():
                self._leave_out(f"has not taken the last of it within {self._patience:g} s")

    def _put(self, news: Rows | str) -> None:
        if not self._left_out:
            try:
                self._news.put_nowait(news)
            except queue.Full:
                self._leave_out(f"is {self._news.maxsize:,} rounds behind")

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
