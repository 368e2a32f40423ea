"""A test of the validation itself: flip a bit in one rank's sum, as a broken GPU or a broken fabric would.

FLORA_HPC_BENCH_FLIP=1 flips a bit of what rank 1 gives to every allreduce; 1:received of what it gets, on this rank alone.
A third part, as in 1:sent:2, leaves parts of the world with fewer ranks alone.
"""

import os
from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np

from flora_hpc.comm.communicator import Array, Communicator
from flora_hpc.errors import UserError

VARIABLE = "FLORA_HPC_BENCH_FLIP"
BIT = 20  # of the first sum: 16 in its units, far from what would leave the range of the numbers


class Flipping:
    """A Communicator whose allreduce flips a bit on this rank, before or after the sum."""

    def __init__(self, comm: Communicator, received: bool) -> None:
        self._comm, self._received = comm, received
        self.name, self.rank, self.size = comm.name, comm.rank, comm.size

    def allreduce(self, array: Array) -> None:
        if not self._received:
            self._flip(array)
        self._comm.allreduce(array)
        if self._received:
            self._flip(array)

    @staticmethod
    def _flip(array: Array) -> None:
        array.reshape(-1)[0] ^= np.int64(1 << BIT)

    def broadcast(self, array: Array) -> None:
        self._comm.broadcast(array)

    def allgather(self, data: bytes) -> list[bytes]:
        return self._comm.allgather(data)

    def gather(self, data: bytes) -> list[bytes] | None:
        return self._comm.gather(data)

    def exchange(self, parts: Sequence[bytes]) -> list[bytes]:
        return self._comm.exchange(parts)

    def barrier(self) -> None:
        self._comm.barrier()

    def split(self, color: int, patient: bool = False) -> Communicator:
        return self._comm.split(color, patient)

    def abort(self, code: int) -> NoReturn:
        self._comm.abort(code)

    def close(self) -> None:
        self._comm.close()


def flipped(comm: Communicator, world_rank: int, environ: Mapping[str, str] = os.environ) -> Communicator:
    """`comm`, with a flipped bit where the environment asks for it on this rank. Raises UserError for a wrong value."""
    text = environ.get(VARIABLE, "")
    if not text:
        return comm
    rank, _, rest = text.partition(":")
    way, _, ranks = (rest or "sent").partition(":")
    if not (rank.isdecimal() and way in ("sent", "received") and (ranks or "1").isdecimal()):
        raise UserError(f"{VARIABLE} is {text!r}; give a rank, such as 1, 1:received or 1:sent:2, or unset it")
    if int(rank) != world_rank or comm.size < int(ranks or 1):
        return comm
    return Flipping(comm, way == "received")
