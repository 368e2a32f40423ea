"""Wraps any Communicator: counts bytes and seconds, without messages of its own."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

from flora_hpc.comm.communicator import Array, Communicator


class Lap(NamedTuple):
    """A stretch of one rank's timeline."""

    seconds: dict[str, float]  # by phase
    collectives: list[float]  # seconds of each, in order; `records.known.wait_and_transfer` finds the waiting in them
    total: float  # seconds, also those of no phase
    num_bytes: int  # handed to collectives


class Meter:
    """A Communicator that keeps a timeline. A rank's seconds since the last `lap` are split into named phases and collectives.

    `idle` returns when the device has nothing left to do, so that work is charged to the phase that asked for it.
    """

    def __init__(self, comm: Communicator, clock: Callable[[], float] = time.perf_counter, idle: Callable[[], None] = lambda: None):
        self._comm, self.clock, self._idle = comm, clock, idle
        self.name, self.rank, self.size = comm.name, comm.rank, comm.size
        self.inside_since: float | None = None  # when the collective that it is in began
        self.num_entered = 0  # collectives
        self._begin()

    def _begin(self) -> None:
        self._began, self._num_bytes = self.clock(), 0
        self._seconds: dict[str, float] = {}
        self._collectives: list[float] = []

    def lap(self) -> Lap:
        """What happened since the last one; the next one starts now."""
        lap = Lap(self._seconds, self._collectives, self.clock() - self._began, self._num_bytes)
        self._begin()
        return lap

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge what happens inside to `name`; phases do not nest, and a collective is none."""
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

    def barrier(self) -> None:
        with self._collective(0):
            self._comm.barrier()

    def abort(self, code: int) -> NoReturn:
        self._comm.abort(code)

    def close(self) -> None:
        self._comm.close()
