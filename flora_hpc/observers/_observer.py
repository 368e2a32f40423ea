"""What an observer is: told about a run on rank 0, unable to change it."""

from typing import Protocol, runtime_checkable

from flora_hpc.records.known import RoundRecord, RunInfo


class Observer(Protocol):
    """Called in this order: `started`, `round` for every round from 0, `ended`."""

    def started(self, info: RunInfo) -> None: ...

    def round(self, record: RoundRecord) -> None: ...

    def ended(self, status: str) -> None:
        """`status` is finished, stopped (by a signal, to be gone on with), interrupted or failed."""


@runtime_checkable
class WatchesClients(Protocol):
    """What an observer may be, too: told how far rank 0 is within a round."""

    def trained(self, done: int, mine: int, cohort: int) -> None:
        """`done` of the `mine` clients of rank 0, 0 when that is not known beforehand, of `cohort` in all, have trained.

        Called by the thread that trains, after every group: take a microsecond, and draw in a thread of your own.
        """
