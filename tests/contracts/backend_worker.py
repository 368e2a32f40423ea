"""One rank of a world that test_backends.py starts: uses every collective and writes what came of it to FOLDER/RANK.json.

[launcher ...] python backend_worker.py BACKEND FOLDER [one core]
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from flora_hpc.comm.backends import mpi
from flora_hpc.comm.communicator import AgreedError, Communicator, connect, together
from flora_hpc.comm.launch import Launch, detect
from flora_hpc.comm.meter import Meter
from flora_hpc.config import CommConfig
from flora_hpc.errors import UserError
from flora_hpc.records.known import wait_and_transfer

NUM_BARRIERS = 20
LATE_SECONDS = 1.0


def main(backend: str, folder: Path) -> None:
    launch = detect()
    report: dict[str, Any] = {"launch": asdict(launch), "serial": connect_serially(launch)}
    with connect(launch, CommConfig(backend=backend, timeout_seconds=60)) as comm:
        report |= {"name": comm.name, "rank": comm.rank, "size": comm.size}
        report |= use(comm, folder)
    (folder / f"{launch.rank}.json").write_text(json.dumps(report))


def connect_serially(launch: Launch) -> str:
    """What is said to somebody who asks for backend 'serial' here; nothing when it is right."""
    try:
        with connect(launch, CommConfig(backend="serial")):
            return ""
    except UserError as error:
        return str(error)


def use(comm: Communicator, folder: Path) -> dict[str, Any]:
    summed = np.array([[comm.rank + 1, -comm.rank], [2**60 + comm.rank, 0]], np.int64)
    comm.allreduce(summed)
    sent = np.array([0.1, np.nan, -0.0] if comm.rank == 0 else [9.0, 9.0, 9.0], np.float32)
    comm.broadcast(sent)
    gathered = comm.gather(b"z" * (3 - comm.rank))
    return {
        "allreduce": summed.tolist(),
        "broadcast": sent.tobytes().hex(),
        "allgather": [part.decode() for part in comm.allgather(b"abc"[: comm.rank])],
        "allgather of nothing": [part.decode() for part in comm.allgather(b"")],
        "gather": None if gathered is None else [part.decode() for part in gathered],
        "exchange": exchange_words(comm),
        "exchange of nothing": [part.decode() for part in comm.exchange([b""] * comm.size)],
        "exchange in one direction": [part.decode() for part in comm.exchange(to_the_last(comm, b"abc"))],
        "exchange of megabytes": exchange_megabytes(comm),
        "exchange in pieces": exchange_in_pieces(comm),
        "parts": use_part(comm, comm.rank % 2),
        "parts of parts": use_part(comm.split(0), comm.rank),
        "present after barriers": meet(comm, folder),
        "waited": wait_for_the_last_one(comm),
        "seconds on a core while waiting": seconds_on_a_core_while_waiting(comm),
        "waited in an exchange": wait_for_the_last_one_of_an_exchange(comm),
        "all agree": together(comm, lambda: comm.rank * 10),
        "last one fails": agreed_problem(comm, {comm.size - 1}),
        "all fail": agreed_problem(comm, set(range(comm.size))),
    }


def use_part(comm: Communicator, color: int) -> dict[str, Any]:
    """What each collective gives on the ranks of one color."""
    part = comm.split(color)
    summed, sent = np.array([10**part.rank], np.int64), np.array([comm.rank], np.int64)
    part.allreduce(summed)
    part.broadcast(sent)
    gathered = part.gather(str(comm.rank).encode())
    result = {
        "rank": part.rank,
        "size": part.size,
        "allreduce": summed.tolist(),
        "broadcast": sent.tolist(),
        "allgather": [data.decode() for data in part.allgather(str(comm.rank).encode())],
        "gather": None if gathered is None else [data.decode() for data in gathered],
        "exchange": exchange_words(part),
    }
    part.barrier()
    part.close()
    return result


def to_the_last(comm: Communicator, data: bytes) -> list[bytes]:
    """The parts of an exchange in which rank 0 sends `data` to the last rank, and nobody sends anything else."""
    return [data if (comm.rank, to) == (0, comm.size - 1) else b"" for to in range(comm.size)]


def exchange_words(comm: Communicator) -> list[str]:
    """What comes from each rank when rank s sends 's>r' to rank r, s + r times."""
    parts = comm.exchange([f"{comm.rank}>{to}".encode() * (comm.rank + to) for to in range(comm.size)])
    return [part.decode() for part in parts]


def exchange_megabytes(comm: Communicator) -> list[bool]:
    """Whether some random megabytes come from each rank as they were sent."""

    def megabytes(sender: int, to: int) -> bytes:
        return np.random.default_rng([sender, to]).bytes(3_000_001 + 100_000 * to)

    parts = comm.exchange([megabytes(comm.rank, to) for to in range(comm.size)])
    return [part == megabytes(sender, comm.rank) for sender, part in enumerate(parts)]


def exchange_in_pieces(comm: Communicator) -> list[str]:
    """What comes from each rank when MPI sends no more than two bytes to a rank in a call."""
    largest, mpi.LARGEST = mpi.LARGEST, 2 * comm.size
    words = exchange_words(comm)
    mpi.LARGEST = largest
    return words


def meet(comm: Communicator, folder: Path) -> list[int]:
    """How many ranks had come to each barrier when this one left it."""
    present = []
    for number in range(NUM_BARRIERS):
        (folder / f"barrier{number}-{comm.rank}").touch()
        comm.barrier()
        present.append(len(list(folder.glob(f"barrier{number}-*"))))
    return present


def wait_for_the_last_one(comm: Communicator) -> list[float]:
    """Seconds that each rank is said to have waited in an allreduce to which the last one came late."""
    return seconds_of_waiting(comm, lambda meter: meter.allreduce(np.zeros(1000, np.int64)))


def wait_for_the_last_one_of_an_exchange(comm: Communicator) -> list[float]:
    """Seconds that each rank is said to have waited in an exchange of which only the first and the last one have a part."""
    return seconds_of_waiting(comm, lambda meter: meter.exchange(to_the_last(comm, bytes(1000))))


def seconds_on_a_core_while_waiting(comm: Communicator) -> float:
    """Seconds of a core that this rank takes in an allreduce to which the last one comes late."""
    started = time.process_time()
    wait_for_the_last_one(comm)
    return time.process_time() - started


def seconds_of_waiting(comm: Communicator, collective: Callable[[Meter], object]) -> list[float]:
    meter = Meter(comm)
    if comm.rank == comm.size - 1:
        time.sleep(LATE_SECONDS)
    collective(meter)
    waited, _ = wait_and_transfer([json.loads(text) for text in comm.allgather(json.dumps(meter.lap().collectives).encode())])
    return waited.tolist()


def agreed_problem(comm: Communicator, failing: set[int]) -> str:
    """The sentence of the AgreedError that this rank gets when `failing` ranks find no weights."""

    def work() -> None:
        if comm.rank in failing:
            raise UserError("there are no weights; fetch them")

    try:
        together(comm, work)
    except AgreedError as error:
        return str(error)
    return "no error"


if __name__ == "__main__":
    try:
        if "one core" in sys.argv:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        main(sys.argv[1], Path(sys.argv[2]))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # an ordinary exit would wait for the other ranks, and they for this one
