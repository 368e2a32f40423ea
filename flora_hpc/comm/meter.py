"""Measures any Communicator: counts bytes and seconds, and sends no messages of its own."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

from flora_hpc.comm.communicator import Array, Communicator


class Lap(NamedTuple):
    """The measurements between two calls of `lap` on one rank."""

    seconds: dict[str, float]  # by phase
    collectives: list[float]  # seconds of each, in order; `records.known.wait_and_transfer` computes the waiting time from them
    total: float  # seconds, time outside of phases included
    num_bytes: int  # given to collectives, but for what a rank sends to itself


class Meter:
    """A Communicator that measures time. It divides a rank's seconds since the last `lap` into named phases and collectives.

    `idle` returns when the device has finished its work, so that each phase is charged for the work that it started.
    """

    def __init__(self, comm: Communicator, clock: Callable[[], float] = time.perf_counter, idle: Callable[[], None] = lambda: None):
        self._comm, self.clock, self._idle = comm, clock, idle
        self.name, self.rank, self.size = comm.name, comm.rank, comm.size
        self.inside_since: float | None = None  # start of the current collective; None outside of one
        self.num_entered = 0  # collectives
        self._begin()

    def _begin(self) -> None:
        self._began, self._num_bytes = self.clock(), 0
        self._seconds: dict[str, float] = {}
        self._collectives: list[float] = []

    def lap(self) -> Lap:
        """The measurements since the last lap; a new lap begins."""
        lap = Lap(self._seconds, self._collectives, self.clock() - self._began, self._num_bytes)
        self._begin()
        return lap

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the time inside to phase `name`. Phases do not nest; a collective is not a phase."""
        started = self.clock()
        yield
        self._idle()
        self._seconds[name] = self._seconds.get(name, 0.0) + self.clock() - started

    @contextmanager
    def _collective(self, num_bytes: int) -> Iterator[None]:
        self.inside_since = started = self.clock()
        self.num_entered += 1
        yield
        self._idle()
        self.inside_since = None
        self._collectives.append(self.clock() - started)
        self._num_bytes += num_bytes

    def allreduce(self, array: Array) -> None:
        with self._collective(array.nbytes):
            self._comm.allreduce(array)

    def broadcast(self, array: Array) -> None:
        with self._collective(array.nbytes):
            self._comm.broadcast(array)

    def allgather(self, data: bytes) -> list[bytes]:
        with self._collective(len(data)):
            return self._comm.allgather(data)

    def gather(self, data: bytes) -> list[bytes] | None:
        with self._collective(len(data)):
            return self._comm.gather(data)

    def exchange(self, parts: Sequence[bytes]) -> list[bytes]:
        with self._collective(sum(len(part) for rank, part in enumerate(parts) if rank != self.rank)):
            return self._comm.exchange(parts)

    def barrier(self) -> None:
        with self._collective(0):
            self._comm.barrier()

    def split(self, color: int, patient: bool = False) -> Communicator:
        return self._comm.split(color, patient)

    def abort(self, code: int) -> NoReturn:
        self._comm.abort(code)

    def close(self) -> None:
        self._comm.close()
