"""MPI through mpi4py's buffer collectives; any MPI library."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, NoReturn

import numpy as np

from flora_hpc import extras
from flora_hpc.comm import cores, mpilibrary, surroundings
from flora_hpc.comm.communicator import Array
from flora_hpc.comm.launch import Launch
from flora_hpc.config import CommConfig

SHORTEST_PAUSE, LONGEST_PAUSE = 2e-5, 2e-3  # seconds; sixteen ranks that look every 2 ms take a twentieth of a core
LARGEST = 2**30  # bytes that a rank sends or receives in one call: before MPI 4, MPI counts in 32 bits


class Mpi:
    """MPI.COMM_WORLD, or a part of it.

    MPI libraries poll while they wait, and so take a core. Where ranks are `crowded`, they sleep instead: others need the core.
    """

    name = "mpi"

    def __init__(self, mpi: Any, ranks: Any = None, crowded: bool = False) -> None:
        self._mpi, self._ranks, self._crowded = mpi, ranks if ranks is not None else mpi.COMM_WORLD, crowded
        self.rank, self.size = self._ranks.Get_rank(), self._ranks.Get_size()

    def _all(self, collective: str, *buffers: Any, **options: Any) -> None:
        """Call a `collective` that mpi4py has, such as Allreduce."""
        if not self._crowded:
            getattr(self._ranks, collective)(*buffers, **options)
            return
        _sleep_until_done(self._ranks.Ibarrier(), LONGEST_PAUSE)  # the last rank may still work for long
        _sleep_until_done(getattr(self._ranks, f"I{collective.lower()}")(*buffers, **options), SHORTEST_PAUSE)

    def allreduce(self, array: Array) -> None:
        self._all("Allreduce", self._mpi.IN_PLACE, array, op=self._mpi.SUM)

    def broadcast(self, array: Array) -> None:
        self._all("Bcast", array, root=0)

    def allgather(self, data: bytes) -> list[bytes]:
        lengths = np.empty(self.size, np.int64)
        self._all("Allgather", np.array([len(data)], np.int64), lengths)
        received = np.empty(lengths.sum(), np.uint8)
        self._all("Allgatherv", np.frombuffer(data, np.uint8), [received, lengths, _starts(lengths), self._mpi.BYTE])
        return _split(received, lengths)

    def gather(self, data: bytes) -> list[bytes] | None:
        lengths = np.empty(self.size, np.int64) if self.rank == 0 else None
        self._all("Gather", np.array([len(data)], np.int64), lengths, root=0)
        sent = np.frombuffer(data, np.uint8)
        if lengths is None:
            self._all("Gatherv", sent, None, root=0)
            return None
        received = np.empty(lengths.sum(), np.uint8)
        self._all("Gatherv", sent, [received, lengths, _starts(lengths), self._mpi.BYTE], root=0)
        return _split(received, lengths)

    def exchange(self, parts: Sequence[bytes]) -> list[bytes]:
        others = [b"" if rank == self.rank else part for rank, part in enumerate(parts)]
        sent = np.array([[len(part), max(map(len, others))] for part in others], np.int64)
        received = np.empty_like(sent)
        self._all("Alltoall", sent, received)
        (lengths, longest), num_bytes = received.T, max(1, LARGEST // self.size)
        pieces = [
            self._exchange_pieces([part[first : first + num_bytes] for part in others], (lengths - first).clip(0, num_bytes))
            for first in range(0, int(longest.max()), num_bytes)
        ]
        self._all("Barrier")
        return [parts[rank] if rank == self.rank else b"".join(piece[rank] for piece in pieces) for rank in range(self.size)]

    def _exchange_pieces(self, pieces: Sequence[bytes], lengths: Array) -> list[bytes]:
        """Exchange short pieces; this rank receives `lengths` (size,) bytes from the ranks."""
        sent_lengths = np.array([len(piece) for piece in pieces], np.int64)
        sent, received = np.frombuffer(b"".join(pieces), np.uint8), np.empty(lengths.sum(), np.uint8)
        self._all(
            "Alltoallv",
            [sent, sent_lengths, _starts(sent_lengths), self._mpi.BYTE],
            [received, lengths, _starts(lengths), self._mpi.BYTE],
        )
        return _split(received, lengths)

    def barrier(self) -> None:
        self._all("Barrier")

    def split(self, color: int, patient: bool = False) -> "Mpi":
        return Mpi(self._mpi, self._ranks.Split(color, self.rank), self._crowded)

    def abort(self, code: int) -> NoReturn:
        self._mpi.COMM_WORLD.Abort(code)
        os._exit(code)

    def close(self) -> None:
        """Free a part of the world. mpi4py finalizes MPI when the interpreter exits."""
        if self._ranks != self._mpi.COMM_WORLD:
            self._ranks.Free()


def _sleep_until_done(request: Any, longest: float) -> None:
    """Wait for a request; pauses grow to the `longest`, in seconds."""
    pause = SHORTEST_PAUSE
    while not request.Test():
        time.sleep(pause)
        pause = min(2 * pause, longest)


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
    mpi = load(launch)
    return Mpi(mpi, crowded=cores.crowded(cores.places(Mpi(mpi), cores.here())))
