"""One process; every collective is already done."""

import os
from collections.abc import Sequence
from typing import NoReturn

from flora_hpc.comm.communicator import Array
from flora_hpc.comm.launch import Launch
from flora_hpc.config import CommConfig


class Serial:
    """A world of one rank."""

    name, rank, size = "serial", 0, 1

    def allreduce(self, array: Array) -> None:
        """The array already is the sum over one rank."""

    def broadcast(self, array: Array) -> None:
        """Rank 0 already has the array."""

    def allgather(self, data: bytes) -> list[bytes]:
        return [data]

    def gather(self, data: bytes) -> list[bytes]:
        return [data]

    def exchange(self, parts: Sequence[bytes]) -> list[bytes]:
        return list(parts)

    def barrier(self) -> None:
        """There is no other rank."""

    def split(self, color: int, patient: bool = False) -> "Serial":
        return Serial()

    def abort(self, code: int) -> NoReturn:
        os._exit(code)

    def close(self) -> None:
        """Nothing is open."""


def build(launch: Launch, config: CommConfig) -> Serial:
    return Serial()
