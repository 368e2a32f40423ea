"""What an observer is: told about a run on rank 0, unable to change it."""

from typing import Protocol

from flora_hpc.records.known import RoundRecord, RunInfo


class Observer(Protocol):
    """Called in this order: `started`, `round` for every round from 0, `ended`."""

    def started(self, info: RunInfo) -> None: ...

    def round(self, record: RoundRecord) -> None: ...

    def ended(self, status: str) -> None:
        """`status` is finished, stopped (by a signal, to be gone on with), interrupted or failed."""
