"""Ranks that are threads of one process."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import numpy as np

from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.communicator import Array, Communicator

T = TypeVar("T")


class Thread(Serial):
    """One of several ranks; `sent[s][r]` is what rank s sends to rank r."""

    name = "threads"

    def __init__(self, rank: int, sent: list[Sequence[bytes]], barrier: Barrier) -> None:
        self.rank, self.size, self._sent, self._barrier = rank, len(sent), sent, barrier
        self.num_sent = 0  # bytes to other ranks

    def exchange(self, parts: Sequence[bytes]) -> list[bytes]:
        assert len(parts) == self.size
        self.num_sent += sum(len(part) for rank, part in enumerate(parts) if rank != self.rank)
        self._sent[self.rank] = parts
        self._barrier.wait(timeout=30)
        received = [sent[self.rank] for sent in self._sent]
        self._barrier.wait(timeout=30)
        return received

    def allreduce(self, array: Array) -> None:
        array[:] = sum(np.frombuffer(data, array.dtype).reshape(array.shape) for data in self.allgather(array.tobytes()))

    def allgather(self, data: bytes) -> list[bytes]:
        return self.exchange([data] * self.size)

    def gather(self, data: bytes) -> list[bytes] | None:
        gathered = self.exchange([data] + [b""] * (self.size - 1))
        return gathered if self.rank == 0 else None

    def broadcast(self, array: Array) -> None:
        array[:] = np.frombuffer(self.allgather(array.tobytes())[0], array.dtype).reshape(array.shape)


def on_ranks(size: int, work: Callable[[Communicator], T]) -> list[T]:
    """What `work` returns on each of `size` ranks."""
    sent: list[Sequence[bytes]] = [()] * size
    barrier = Barrier(size)

    def work_on_rank(rank: int) -> T:
        try:
            return work(Thread(rank, sent, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(work_on_rank, range(size)))
