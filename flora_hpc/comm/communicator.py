"""The interface of every backend, and how one rank's error reaches all ranks."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from flora_hpc import plugins
from flora_hpc.comm import surroundings
from flora_hpc.comm.launch import Launch, check_world
from flora_hpc.config import CommConfig
from flora_hpc.errors import UserError

Array = npt.NDArray[Any]
T = TypeVar("T")


class AgreedError(UserError):
    """A mistake that every rank knows. So every rank can exit in good order, and one rank prints the message."""


class Communicator(Protocol):
    """Collectives over contiguous NumPy arrays. All ranks call the same collectives in the same order."""

    name: str
    rank: int
    size: int

    def allreduce(self, array: Array) -> None:
        """Replace `array` (int64) by its sum over all ranks, in place."""

    def broadcast(self, array: Array) -> None:
        """Replace `array` by rank 0's array, in place."""

    def allgather(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, by rank, on every rank; lengths may differ."""

    def gather(self, data: bytes) -> list[bytes] | None:
        """Every rank's bytes, by rank, on rank 0; None elsewhere; lengths may differ."""

    def exchange(self, parts: Sequence[bytes]) -> list[bytes]:
        """Send `parts[r]` to each rank r, and return what each rank sent to this rank, by rank; lengths may differ.

        A rank's part for itself is not copied. Every rank returns only when all ranks have their parts: so the shortest time of a
        rank is that of the transfer, even where a rank sends and receives nothing.
        """

    def barrier(self) -> None:
        """Return when every rank has arrived."""

    def split(self, color: int, patient: bool = False) -> "Communicator":
        """A communicator of the ranks that give the same `color` >= 0, in the order of their ranks here.

        All ranks call this together. The new communicator must be closed before this one; its `abort` still ends the whole job.
        Collectives of a `patient` communicator wait for days, for ranks that meet again after work of unknown length.
        """

    def abort(self, code: int) -> NoReturn:
        """End the whole job at once."""

    def close(self) -> None:
        """Leave the communicator; nothing may be called afterwards."""


class Choice(NamedTuple):
    """A backend, and why it was chosen."""

    backend: str
    why: str


def choose(launch: Launch, config: CommConfig) -> Choice:
    """The backend that `auto` means under this launcher."""
    if config.backend != "auto":
        return Choice(config.backend, "as comm.backend says")
    if launch.launcher == "none" or (launch.launcher == "slurm" and launch.size == 1):
        return Choice("serial", "there is one process")
    if launch.launcher in ("openmpi", "mpich"):
        return Choice("mpi", "its mpiexec started the ranks")
    if launch.launcher == "slurm" and plugins.member("backends", "mpi").available():
        return Choice("mpi", "mpi4py is installed")
    nccl = plugins.member("backends", "nccl")
    if nccl.available(launch, config):
        return Choice("nccl", "every rank has a GPU of its own")
    return Choice("gloo", nccl.unfit(launch, config))


@contextmanager
def connect(launch: Launch, config: CommConfig) -> Iterator[Communicator]:
    """The communicator of this run. Raises UserError when its size differs from the launcher's."""
    backend = choose(launch, config).backend
    surroundings.check(launch, backend)
    comm: Communicator = plugins.member("backends", backend).build(launch, config)
    try:
        check_world(launch, backend, comm.size)
        yield comm
    finally:
        comm.close()


def together(comm: Communicator, work: Callable[[], T]) -> T:
    """Do `work` on every rank. A UserError on any rank becomes the same `AgreedError` on all ranks.

    Otherwise, when one node lacks a file, the other ranks would wait in their next collective.
    """
    result, problem = None, ""
    try:
        result = work()
    except UserError as error:
        problem = str(error) or type(error).__name__
    problems = [text.decode() for text in comm.allgather(problem.encode())]
    ranks = [rank for rank, text in enumerate(problems) if text]
    if ranks:
        where = "" if len(ranks) == comm.size else f" (on rank {ranks[0]} of {comm.size})"
        raise AgreedError(problems[ranks[0]] + where)
    return result  # type: ignore[return-value]


def same_everywhere(comm: Communicator, facts: dict[str, str]) -> None:
    """Raise AgreedError, on every rank, unless all ranks have the same `facts`. It names the first different rank and facts."""
    all_facts = [json.loads(text) for text in comm.allgather(json.dumps(facts).encode())]
    for rank, rank_facts in enumerate(all_facts):
        differing = [name for name in facts if rank_facts[name] != all_facts[0][name]]
        if differing:
            raise AgreedError(
                f"rank {rank} of {comm.size} has another {' and '.join(differing)} than rank 0; give every rank the same files"
            )


def send_to_all(comm: Communicator, data: bytes) -> bytes:
    """Broadcast rank 0's bytes to every rank, and return them."""
    length = np.array([len(data)], np.int64)
    comm.broadcast(length)
    buffer = np.zeros(int(length[0]), np.uint8)
    if comm.rank == 0:
        buffer[:] = np.frombuffer(data, np.uint8)
    if len(buffer):
        comm.broadcast(buffer)
    return buffer.tobytes()
