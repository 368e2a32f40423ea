"""Wraps any Communicator: counts bytes and seconds, and tells waiting for slow ranks from transfer."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from flora_hpc.comm.communicator import Array, Communicator


class Meter:
    """A Communicator that keeps a timeline. A rank's seconds since the last `lap` are split into named phases.

    Before a collective that moves data, ranks meet in a barrier: the time in it is `wait`, the collective itself is `comm`.
    `idle` returns when the device has nothing left to do, so that work is charged to the phase that asked for it.
    """

    def __init__(self, comm: Communicator, clock: Callable[[], float] = time.perf_counter, idle: Callable[[], None] = lambda: None):
        self._comm, self.clock, self._idle = comm, clock, idle
        self.name, self.rank, self.size = comm.name, comm.rank, comm.size
        self._lap_started = clock()
        self._seconds: dict[str, float] = {}
        self._bytes = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge what happens inside to `name`; phases do not nest, and a collective is a phase of its own."""
        started = self.clock()
        yield
        self._idle()
        self._seconds[name] = self._seconds.get(name, 0.0) + self.clock() - started

    def lap(self) -> tuple[dict[str, float], float, int]:
        """Seconds by phase, all seconds, and bytes handed to collectives since the last lap; starts the next one."""
        now = self.clock()
        result = self._seconds, now - self._lap_started, self._bytes
        self._lap_started, self._seconds, self._bytes = now, {}, 0
        return result

    @contextmanager
    def _collective(self, num_bytes: int) -> Iterator[None]:
        with self.phase("wait"):
            self._comm.barrier()
        with self.phase("comm"):
            yield
        self._bytes += num_bytes

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
        with self.phase("wait"):
            self._comm.barrier()

    def abort(self, code: int) -> NoReturn:
        self._comm.abort(code)

    def close(self) -> None:
        self._comm.close()
