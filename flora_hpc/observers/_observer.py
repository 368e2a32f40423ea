"""The observer protocol: notified of a run on rank 0, unable to change it."""

from typing import Protocol, runtime_checkable

from flora_hpc.records.known import RoundRecord, RunInfo


class Observer(Protocol):
    """Called in this order: `started`, `round` for every round from 0, `ended`."""

    def started(self, info: RunInfo) -> None: ...

    def round(self, record: RoundRecord) -> None: ...

    def ended(self, status: str) -> None:
        """`status` is finished, stopped (by a signal, to be resumed), interrupted or failed."""


@runtime_checkable
class WatchesClients(Protocol):
    """An observer that is also notified of progress within a round, on rank 0."""

    def trained(self, done: int, num_local: int, cohort: int) -> None:
        """`done` clients of rank 0 have trained, of `num_local` on rank 0 (0: not known beforehand) and `cohort` in all.

        Called by the thread that trains, after every group: return within a microsecond, and draw in another thread.
        """
