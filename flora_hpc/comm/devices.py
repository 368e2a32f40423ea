"""Which GPU and how many cores this rank may use."""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from flora_hpc.comm import cores, gpus
from flora_hpc.comm.communicator import Communicator
from flora_hpc.comm.launch import Launch
from flora_hpc.config import CommConfig
from flora_hpc.errors import UserError


def pick(launch: Launch, config: CommConfig) -> torch.device:
    """The GPU of this local rank, or the CPU."""
    count = torch.cuda.device_count() if config.device != "cpu" else 0
    index = gpus.index(count, launch.local_rank, launch.local_size)
    if config.device == "cuda" and index is None:
        raise UserError("comm.device: 'cuda' was asked for, but PyTorch sees no GPU here; set comm.device: auto or cpu")
    if index is None:
        return torch.device("cpu")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means fp32
    torch.backends.cudnn.deterministic = True
    return device


class Neighbours(NamedTuple):
    """What a rank shares with other ranks of its node, whichever of them take part in its run."""

    num_threads: int  # of this rank
    ranks_per_gpu: int  # that compute on this rank's GPU; 1 for the CPU


def find_neighbours(comm: Communicator, launch: Launch, device: torch.device) -> Neighbours:
    """Share the cores and GPUs of the nodes among all ranks of `comm`, which all call this."""
    return Neighbours(share_cores(comm, launch), sharing(comm, device))


def share_cores(comm: Communicator, launch: Launch) -> int:
    """Set and return this rank's number of threads: its cores, divided by the number of ranks with the same cores.

    Upper bounds are a rank's share of the control groups' quotas, Slurm's --cpus-per-task, and the user's OMP_NUM_THREADS.
    """
    own = cores.here()
    num_threads = max(1, int(cores.share(cores.places(comm, own), own)))  # all threads would wait for one that a quota stops
    if launch.launcher == "slurm" and os.environ.get("SLURM_CPUS_PER_TASK", "").isdigit():
        num_threads = min(num_threads, int(os.environ["SLURM_CPUS_PER_TASK"]))
    num_threads = min(num_threads, threads_of_user(launch) or num_threads)
    torch.set_num_threads(num_threads)
    return num_threads


def threads_of_user(launch: Launch, environ: Mapping[str, str] = os.environ, parent: Path | None = None) -> int | None:
    """OMP_NUM_THREADS where the user has set it; None otherwise.

    torchrun itself sets the variable to 1 when it starts several ranks and the user has not set it. In this case the environment
    of torchrun, the `parent` process, lacks the variable.
    """
    text = environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if not text.isdigit() or int(text) == 0:
        return None
    if launch.launcher == "torchrun" and launch.local_size > 1 and text == "1":
        before = _read(parent or Path(f"/proc/{os.getppid()}/environ"))
        if not any(entry.startswith("OMP_NUM_THREADS=") for entry in before.split("\0")):
            return None
    return int(text)


def is_first_on_node(comm: Communicator) -> bool:
    """Whether this rank is the first rank of `comm` on its node. All ranks call this."""
    nodes = comm.allgather(cores.machine().encode())
    return nodes.index(nodes[comm.rank]) == comm.rank


def gpu(device: torch.device) -> str:
    """An identifier of the GPU behind `device`, since two ranks may call different GPUs cuda:0. Empty for the CPU."""
    if device.type != "cuda":
        return ""
    return f"{cores.machine()} {getattr(torch.cuda.get_device_properties(device), 'uuid', device)}"


def sharing(comm: Communicator, device: torch.device) -> int:
    """How many ranks compute on this rank's GPU; 1 for the CPU. All ranks call this."""
    own_gpu = gpu(device).encode()
    all_gpus = comm.allgather(own_gpu)
    return all_gpus.count(own_gpu) if own_gpu else 1


class Room(NamedTuple):
    """Memory that a group of clients may take, and whether it is GPU memory."""

    num_bytes: int
    gpu: bool


def room(device: torch.device, num_sharing: int = 1) -> Room:
    """Half of this rank's share of the GPU's memory, when `num_sharing` ranks use the GPU.

    On the CPU: half of the node's memory per core, which does not depend on the number of ranks.
    """
    if device.type == "cuda":
        return Room(torch.cuda.get_device_properties(device).total_memory // 2 // num_sharing, gpu=True)
    return Room(memory_per_core() // 2, gpu=False)


def least_room(comm: Communicator, rank_room: Room) -> Room:
    """The smallest room of all ranks, on every rank."""
    rooms = [Room(*json.loads(text)) for text in comm.allgather(json.dumps(rank_room).encode())]
    return Room(min(room.num_bytes for room in rooms), gpu=any(room.gpu for room in rooms))


def memory_per_core(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory per core: of the node, or of a control group (version 2) around this process where that is less.

    A job with a share of the node's memory usually has the same share of its cores. So the ratio fits the job, too.
    """
    num_cores = os.cpu_count() or 1
    total = next(int(line.split()[1]) * 1024 for line in (proc / "meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    shares = [total // num_cores]
    paths = [line[len("0::/") :] for line in (proc / "self" / "cgroup").read_text().splitlines() if line.startswith("0::/")]
    for path in paths:
        group = groups / path
        for folder in [group, *group.parents][: len(group.parts) - len(groups.parts) + 1]:
            limit = _read(folder / "memory.max")
            if limit.isdigit():
                shares.append(int(limit) // (_count(_read(folder / "cpuset.cpus.effective")) or num_cores))
    return min(shares)


def _read(file: Path) -> str:
    """A short file's text; empty where there is no such file."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _count(ranges: str) -> int:
    """The number of cores in a list of ranges: '0-3,8' -> 5."""
    ends = [part.split("-") for part in ranges.split(",") if part]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


@dataclass(frozen=True)
class RankPlace:
    """The host, the device and the number of threads of one rank."""

    rank: int
    host: str
    local_rank: int
    device: str
    num_threads: int


def places(comm: Communicator, launch: Launch, device: torch.device, num_threads: int) -> list[RankPlace]:
    """Every rank's place, by rank, on every rank."""
    name = f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "cpu"
    own_place = RankPlace(comm.rank, socket.gethostname(), launch.local_rank, name, num_threads)
    rows = [json.loads(text) for text in comm.allgather(json.dumps([asdict(own_place), gpu(device)]).encode())]
    all_gpus = [row_gpu for _, row_gpu in rows if row_gpu]
    return [
        replace(place, device=f"{place.device} shared by {count} ranks") if count > 1 else place
        for place, count in ((RankPlace(**fields), all_gpus.count(row_gpu)) for fields, row_gpu in rows)
    ]
