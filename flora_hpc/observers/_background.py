"""Notifies observers of a round in a background thread, while the next round is played."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

from flora_hpc.observers._observer import Observer, WatchesClients
from flora_hpc.records.known import RoundRecord, RunInfo


class Background:
    """An Observer that notifies other observers of rounds in a background thread: in order, and at most one round behind.

    An error of an observer there, for example a full disk, is raised by the next `round` or by `flush`.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers
        self._progress_calls = [observer.trained for observer in observers if isinstance(observer, WatchesClients)]
        self._executor = ThreadPoolExecutor(1, "observers")  # its thread starts with the first round
        self._future: Future[None] | None = None

    def started(self, info: RunInfo) -> None:
        """Notify the observers at once; may raise UserError, for example when the run directory cannot be written."""
        for observer in self._observers:
            observer.started(info)

    def round(self, record: RoundRecord) -> None:
        """Return as soon as the observers have the round before."""
        self.rounds([record])

    def rounds(self, records: Sequence[RoundRecord], then: Callable[[], None] = lambda: None) -> None:
        """Return as soon as the call before is done; call `then` when the observers have these records."""
        self.flush()
        self._future = self._executor.submit(self._notify, records, then)

    def _notify(self, records: Sequence[RoundRecord], then: Callable[[], None]) -> None:
        for record in records:
            for observer in self._observers:
                observer.round(record)
        then()

    def trained(self, done: int, num_local: int, cohort: int) -> None:
        """Notify observers with a method `trained` of the clients done, at once and in this thread."""
        for notify in self._progress_calls:
            notify(done, num_local, cohort)

    def flush(self) -> None:
        """Return when the observers have every round. Raises what an observer raised."""
        if self._future is not None:
            self._future.result()

    def ended(self, status: str) -> None:
        """Notify every observer of the end, after every round, whatever one of them raises."""
        self._executor.shutdown()
        with ExitStack() as calls:
            for observer in reversed(self._observers):
                calls.callback(observer.ended, status)
