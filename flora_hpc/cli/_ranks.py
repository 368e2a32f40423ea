"""What `flora-hpc doctor` knows of every rank, and what it makes of it."""

import json
import os
import socket
from dataclasses import asdict, dataclass

from flora_hpc.comm import gpus, launch, quota
from flora_hpc.comm.communicator import Choice, Communicator, together
from flora_hpc.comm.launch import Launch
from flora_hpc.config import CommConfig

COMPARED = ("flora_hpc", "python", "torch", "numpy")


@dataclass(frozen=True)
class Row:
    """One rank: what is shown of it, in the table's order, and what is compared with other ranks."""

    shown: list[str]
    launchers_rank: int
    local_rank: int
    machine: str
    unseen: bool  # its launcher gave it a GPU that PyTorch does not see
    shares: bool  # its GPU with another rank
    same: dict[str, str]  # what must be the same everywhere


def gather(comm: Communicator, me: Launch, config: CommConfig, library: str, versions: dict[str, str]) -> list[Row]:
    """Every rank's row, on every rank. Sets this rank's device and threads as a run does."""
    from flora_hpc.comm import devices  # torch takes seconds to import

    device = together(comm, lambda: devices.pick(me, config))
    cores, quotas, num_threads = sorted(os.sched_getaffinity(0)), quota.quotas(), devices.share_cores(comm, me)
    place = devices.places(comm, me, device, num_threads)[comm.rank]
    unseen = gpus.unseen(me, os.environ) if device.type == "cpu" and config.device != "cpu" else ""
    used = {"mpi": library, "serial": "none needed"}.get(comm.name, f"PyTorch {versions['torch']}")
    mine = Row(
        shown=[
            str(comm.rank),
            socket.gethostname(),
            str(me.local_rank),
            f"{place.device} ({unseen})" if unseen else place.device,
            f"{len(cores)} ({ranges(cores)})" + "".join(f", quota {limit:g}" for limit in sorted(quotas.values())[:1]),
            str(num_threads),
            used,
            launch.origin(),
        ],
        launchers_rank=me.rank,
        local_rank=me.local_rank,
        machine=devices.machine(),
        unseen=bool(unseen),
        shares="shared by" in place.device,
        same={name: versions.get(name, "missing") for name in COMPARED} | {"MPI library": library},
    )
    return [Row(**json.loads(text)) for text in comm.allgather(json.dumps(asdict(mine)).encode())]


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> '0-2,5'."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def mismatches(rows: list[Row]) -> list[str]:
    """What is wrong between ranks, with the cure; every rank finds the same."""
    problems = []
    taken: dict[tuple[str, int], int] = {}
    for rank, row in enumerate(rows):
        if row.launchers_rank != rank:
            problems.append(
                f"rank {rank} of the communicator is rank {row.launchers_rank} of the launcher ({row.shown[-1]}); "
                "start the ranks with one launcher, not one inside another"
            )
        for name, text in row.same.items():
            if text != rows[0].same[name]:
                cure = "give every rank the same environment"
                problems.append(f"rank {rank} on {row.shown[1]} has {name} {text}, rank 0 has {rows[0].same[name]}; {cure}")
        first = taken.setdefault((row.machine, row.local_rank), rank)
        if first != rank:
            problems.append(
                f"ranks {first} and {rank} are both local rank {row.local_rank} of {row.shown[1]} and would take the same GPU; "
                "start all ranks of a machine with one launcher"
            )
    return problems


def notes(rows: list[Row], choice: Choice) -> list[str]:
    """What a run would do here and a user may not expect."""
    found = []
    if any(row.unseen for row in rows):
        found.append(
            "PyTorch does not see the GPUs that the launcher gave; a run computes on the CPU (is PyTorch a build for CUDA?)"
        )
    if any(row.shares for row in rows):
        why = (
            f"backend {choice.backend}: {choice.why}"
            if choice.backend == "gloo"
            else f"backend {choice.backend}, since NCCL needs one each"
        )
        found.append(f"ranks share GPUs ({why}); each plans with its part of a GPU's memory")
    return found
