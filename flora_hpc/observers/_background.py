"""Tells observers about a round while the next one is played."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

from flora_hpc.observers._observer import Observer, WatchesClients
from flora_hpc.records.known import RoundRecord, RunInfo


class Background:
    """An Observer that tells others, about rounds in a thread of its own: in order, and one round behind at most.

    What an observer raises there, for example when the disk is full, is raised by the next `round` or by `flush`.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers
        self._watching = [observer.trained for observer in observers if isinstance(observer, WatchesClients)]
        self._teller = ThreadPoolExecutor(1, "observers")  # its thread starts with the first round
        self._told: Future[None] | None = None

    def started(self, info: RunInfo) -> None:
        """Tell it at once; it may raise UserError, for example when the run directory cannot be written."""
        for observer in self._observers:
            observer.started(info)

    def round(self, record: RoundRecord) -> None:
        """Return as soon as the round before is told."""
        self.rounds([record])

    def rounds(self, records: Sequence[RoundRecord], then: Callable[[], None] = lambda: None) -> None:
        """Return as soon as what came before is told and done; when these records are told, do `then`."""
        self.flush()
        self._told = self._teller.submit(self._tell, records, then)

    def _tell(self, records: Sequence[RoundRecord], then: Callable[[], None]) -> None:
        for record in records:
            for observer in self._observers:
                observer.round(record)
        then()

    def trained(self, done: int, mine: int, cohort: int) -> None:
        """Say how far this rank is with a round, at once and in this thread, to observers that have a method `trained`."""
        for tell in self._watching:
            tell(done, mine, cohort)

    def flush(self) -> None:
        """Return when every round is told. Raises what an observer raised."""
        if self._told is not None:
            self._told.result()

    def ended(self, status: str) -> None:
        """Tell it to every observer, whatever one of them raises, when every round is told."""
        self._teller.shutdown()
        with ExitStack() as calls:
            for observer in reversed(self._observers):
                calls.callback(observer.ended, status)
