"""The facts about every rank for `flora-hpc doctor`, and the problems and notes that follow from them."""

import json
import os
import socket
from dataclasses import asdict, dataclass, field

from rich.filesize import decimal

from flora_hpc.comm import cores, gpus, launch, quota
from flora_hpc.comm.communicator import Choice, Communicator, together
from flora_hpc.comm.launch import Launch
from flora_hpc.comm.node import Node, node
from flora_hpc.config import CommConfig

COMPARED = ("flora_hpc", "python", "torch", "numpy")


@dataclass(frozen=True)
class Row:
    """One rank: where it runs, what it may use, and what must be the same on every rank."""

    rank: int
    host: str
    local_rank: int
    device: str
    cores: list[int]  # that the rank may use: its binding
    core_quota: float | None  # of its control groups
    num_threads: int
    library: str  # of its collectives
    place: str  # the launcher's variables that name the rank
    launchers_rank: int
    machine: str  # the same for ranks of one machine
    node: Node
    unseen: str = ""  # the GPU that the launcher gave to the rank but PyTorch does not see
    shares: bool = False  # whether another rank has the same GPU
    same: dict[str, str] = field(default_factory=dict)  # what must be the same everywhere

    def cells(self) -> list[str]:
        """The cells of the table of ranks, in its order."""
        quota = "" if self.core_quota is None else f", quota {self.core_quota:g}"
        return [
            str(self.rank),
            self.host,
            str(self.local_rank),
            f"{self.device} ({self.unseen})" if self.unseen else self.device,
            f"{len(self.cores)} ({ranges(self.cores)}){quota}",
            str(self.num_threads),
            self.library,
            self.place,
        ]


def gather(comm: Communicator, me: Launch, config: CommConfig, library: str, versions: dict[str, str]) -> list[Row]:
    """Gather every rank's row, on every rank. Sets this rank's device and threads as a run does."""
    from flora_hpc.comm import devices  # torch takes seconds to import

    device = together(comm, lambda: devices.pick(me, config))
    num_threads = devices.share_cores(comm, me)
    place = devices.places(comm, me, device, num_threads)[comm.rank]
    local_row = Row(
        rank=comm.rank,
        host=socket.gethostname(),
        local_rank=me.local_rank,
        device=place.device,
        cores=sorted(os.sched_getaffinity(0)),
        core_quota=min(quota.quotas().values(), default=None),
        num_threads=num_threads,
        library={"mpi": library, "serial": "none needed"}.get(comm.name, f"PyTorch {versions['torch']}"),
        place=launch.origin(),
        launchers_rank=me.rank,
        machine=cores.machine(),
        node=node(),
        unseen=gpus.unseen(me, os.environ) if device.type == "cpu" and config.device != "cpu" else "",
        shares="shared by" in place.device,
        same={name: versions.get(name, "missing") for name in COMPARED} | {"MPI library": library},
    )
    rows = [json.loads(text) for text in comm.allgather(json.dumps(asdict(local_row)).encode())]
    return [Row(**row | {"node": Node(**row["node"])}) for row in rows]


def nodes(rows: list[Row]) -> list[list[str]]:
    """One line of cells for each machine: host, ranks, processor, cores, memory."""
    by_machine: dict[str, list[Row]] = {}
    for row in rows:
        by_machine.setdefault(row.machine, []).append(row)
    return [
        [
            group[0].host,
            ranges([row.rank for row in group]),
            group[0].node.processor,
            str(group[0].node.num_cores),
            memory_of(group),
        ]
        for group in by_machine.values()
    ]


def memory_of(rows: list[Row]) -> str:
    """The memory of a machine, and the lowest limit that a control group puts on one of its ranks."""
    total = rows[0].node.memory_bytes
    limits = [row.node.memory_limit_bytes for row in rows if row.node.memory_limit_bytes is not None]
    text = "unknown" if total is None else decimal(total)
    return f"{text}, limit {decimal(min(limits))}" if limits else text


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
    """Problems between ranks, with the cure; the same on every rank."""
    problems = []
    first_ranks: dict[tuple[str, int], int] = {}
    for rank, row in enumerate(rows):
        if row.launchers_rank != rank:
            problems.append(
                f"rank {rank} of the communicator is rank {row.launchers_rank} of the launcher ({row.place}); "
                "start the ranks with one launcher, not one inside another"
            )
        for name, text in row.same.items():
            if text != rows[0].same[name]:
                cure = "give every rank the same environment"
                problems.append(f"rank {rank} on {row.host} has {name} {text}, rank 0 has {rows[0].same[name]}; {cure}")
        first = first_ranks.setdefault((row.machine, row.local_rank), rank)
        if first != rank:
            problems.append(
                f"ranks {first} and {rank} are both local rank {row.local_rank} of {row.host} and would take the same GPU; "
                "start all ranks of a machine with one launcher"
            )
    return problems


def notes(rows: list[Row], choice: Choice) -> list[str]:
    """What a run would do here that a user may not expect."""
    sentences = []
    if any(row.unseen for row in rows):
        sentences.append(
            "PyTorch does not see the GPUs that the launcher gave; a run computes on the CPU (is PyTorch a build for CUDA?)"
        )
    if any(row.shares for row in rows):
        why = (
            f"backend {choice.backend}: {choice.why}"
            if choice.backend == "gloo"
            else f"backend {choice.backend}, since NCCL needs one each"
        )
        sentences.append(f"ranks share GPUs ({why}); each plans with its part of a GPU's memory")
    return sentences + binding(rows)


def binding(rows: list[Row]) -> list[str]:
    """Notes on ranks of a machine that may use the same cores; each names two ranks as an example."""
    first_rows: dict[tuple[str, tuple[int, ...]], Row] = {}
    users: dict[tuple[str, int], Row] = {}
    same, overlap = "", ""
    cure = "srun --cpu-bind=cores or mpiexec --bind-to core gives each rank its own"
    for row in rows:
        first = first_rows.setdefault((row.machine, tuple(row.cores)), row)
        if first is not row:
            pair = f"ranks {first.rank} and {row.rank} of {row.host}"
            same = same or f"{pair} may use the same cores ({ranges(row.cores)}) and share them out by number; {cure}"
            continue
        for core in row.cores:
            user = users.setdefault((row.machine, core), row)
            if user is not row:
                pair = f"ranks {user.rank} and {row.rank} of {row.host}"
                overlap = (
                    overlap or f"{pair} may both use core {core}, but each others besides: their threads may wait for it; {cure}"
                )
    return [note for note in (same, overlap) if note]
