"""MPI through mpi4py's buffer collectives; any MPI library."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, NoReturn

import numpy as np

from flora_hpc import extras
from flora_hpc.comm import mpilibrary, surroundings
from flora_hpc.comm.communicator import Array
from flora_hpc.comm.launch import Launch
from flora_hpc.config import CommConfig

LARGEST = 2**30  # bytes that a rank sends or receives in one call: before MPI 4, MPI counts in 32 bits


class Mpi:
    """MPI.COMM_WORLD, or a part of it."""

    name = "mpi"

    def __init__(self, mpi: Any, ranks: Any = None) -> None:
        self._mpi, self._ranks = mpi, ranks if ranks is not None else mpi.COMM_WORLD
        self.rank, self.size = self._ranks.Get_rank(), self._ranks.Get_size()

    def allreduce(self, array: Array) -> None:
        self._ranks.Allreduce(self._mpi.IN_PLACE, array, op=self._mpi.SUM)

    def broadcast(self, array: Array) -> None:
        self._ranks.Bcast(array, root=0)

    def allgather(self, data: bytes) -> list[bytes]:
        lengths = np.empty(self.size, np.int64)
        self._ranks.Allgather(np.array([len(data)], np.int64), lengths)
        received = np.empty(lengths.sum(), np.uint8)
        self._ranks.Allgatherv(np.frombuffer(data, np.uint8), [received, lengths, _starts(lengths), self._mpi.BYTE])
        return _split(received, lengths)

    def gather(self, data: bytes) -> list[bytes] | None:
        lengths = np.empty(self.size, np.int64) if self.rank == 0 else None
        self._ranks.Gather(np.array([len(data)], np.int64), lengths, root=0)
        sent = np.frombuffer(data, np.uint8)
        if lengths is None:
            self._ranks.Gatherv(sent, None, root=0)
            return None
        received = np.empty(lengths.sum(), np.uint8)
        self._ranks.Gatherv(sent, [received, lengths, _starts(lengths), self._mpi.BYTE], root=0)
        return _split(received, lengths)

    def exchange(self, parts: Sequence[bytes]) -> list[bytes]:
        others = [b"" if rank == self.rank else part for rank, part in enumerate(parts)]
        sent = np.array([[len(part), max(map(len, others))] for part in others], np.int64)
        received = np.empty_like(sent)
        self._ranks.Alltoall(sent, received)
        (lengths, longest), num_bytes = received.T, max(1, LARGEST // self.size)
        pieces = [
            self._exchange_pieces([part[first : first + num_bytes] for part in others], (lengths - first).clip(0, num_bytes))
            for first in range(0, int(longest.max()), num_bytes)
        ]
        self._ranks.Barrier()
        return [parts[rank] if rank == self.rank else b"".join(piece[rank] for piece in pieces) for rank in range(self.size)]

    def _exchange_pieces(self, pieces: Sequence[bytes], lengths: Array) -> list[bytes]:
        """Exchange short pieces; this rank receives `lengths` (size,) bytes from the ranks."""
        sent_lengths = np.array([len(piece) for piece in pieces], np.int64)
        sent, received = np.frombuffer(b"".join(pieces), np.uint8), np.empty(lengths.sum(), np.uint8)
        self._ranks.Alltoallv(
            [sent, sent_lengths, _starts(sent_lengths), self._mpi.BYTE], [received, lengths, _starts(lengths), self._mpi.BYTE]
        )
        return _split(received, lengths)

    def barrier(self) -> None:
        self._ranks.Barrier()

    def split(self, color: int, patient: bool = False) -> "Mpi":
        return Mpi(self._mpi, self._ranks.Split(color, self.rank))

    def abort(self, code: int) -> NoReturn:
        self._mpi.COMM_WORLD.Abort(code)
        os._exit(code)

    def close(self) -> None:
        """Free a part of the world. mpi4py finalizes MPI when the interpreter exits."""
        if self._ranks != self._mpi.COMM_WORLD:
            self._ranks.Free()


def _starts(lengths: Array) -> list[int]:
    return [0, *accumulate(lengths.tolist())][:-1]


def _split(received: Array, lengths: Array) -> list[bytes]:
    return [part.tobytes() for part in np.split(received, np.cumsum(lengths)[:-1])]


def available() -> bool:
    """Whether mpi4py is installed; whether it finds an MPI library is known only after loading it."""
    return extras.installed("mpi4py")


def load(launch: Launch) -> Any:
    """mpi4py's MPI module, with MPI initialised.

    Raises UserError when mpi4py or its library is missing, or when the library does not understand the launcher.
    """
    if launch.local_size > len(os.sched_getaffinity(0)):
        os.environ.setdefault(
            "OMPI_MCA_mpi_yield_when_idle", "1"
        )  # otherwise Open MPI's waiting ranks take the working ranks' cores
    mpi = mpilibrary.module()
    if not mpi.Is_initialized():
        library = mpilibrary.loaded()
        mpilibrary.check(launch, library)
        mpilibrary.prepare(launch, library)
        surroundings.check_shared_memory(launch, library)
        surroundings.spare_shared_memory(launch, library)
        if mpilibrary.needs_fresh_heap(launch, library):
            with ThreadPoolExecutor(1) as thread:
                thread.submit(mpi.Init_thread).result()
        else:
            mpi.Init_thread()
        mpilibrary.check_size(launch, library, mpi.COMM_WORLD.Get_size())
    return mpi


def build(launch: Launch, config: CommConfig) -> Mpi:
    return Mpi(load(launch))
