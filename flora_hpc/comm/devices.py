"""Which GPU and how many cores this rank may use."""

import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from flora_hpc.comm.communicator import Communicator
from flora_hpc.comm.launch import Launch
from flora_hpc.config import CommConfig
from flora_hpc.errors import UserError


def pick(launch: Launch, config: CommConfig) -> torch.device:
    """The GPU of this local rank, or the CPU. Ranks take GPUs in turn; with one visible GPU it is number 0."""
    count = torch.cuda.device_count() if config.device != "cpu" else 0
    if config.device == "cuda" and count == 0:
        raise UserError("comm.device: 'cuda' was asked for, but PyTorch sees no GPU here; set comm.device: auto or cpu")
    if count == 0:
        return torch.device("cpu")
    device = torch.device("cuda", launch.local_rank % count)
    torch.cuda.set_device(device)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means fp32
    torch.backends.cudnn.deterministic = True
    return device


def share_cores(comm: Communicator, launch: Launch) -> int:
    """Set and return the number of threads of this rank: its cores, divided among the ranks that may use the same ones.

    A launcher that binds ranks gives each its own cores; one that does not gives all ranks of a node the same set. Slurm's
    --cpus-per-task is an upper bound, since the node may have other jobs.
    """
    mine = f"{socket.gethostname()} {sorted(os.sched_getaffinity(0))}".encode()
    sharing = comm.allgather(mine).count(mine)
    num_threads = max(1, len(os.sched_getaffinity(0)) // sharing)
    if launch.launcher == "slurm" and os.environ.get("SLURM_CPUS_PER_TASK", "").isdigit():
        num_threads = min(num_threads, int(os.environ["SLURM_CPUS_PER_TASK"]))
    torch.set_num_threads(num_threads)
    return num_threads


class Room(NamedTuple):
    """Memory that a group of clients may take, and whether it is a GPU's."""

    num_bytes: int
    gpu: bool


def room(device: torch.device) -> Room:
    """Half of a GPU's memory; or half of what the node has for each core, so that it holds whatever the number of ranks."""
    if device.type == "cuda":
        return Room(torch.cuda.get_device_properties(device).total_memory // 2, gpu=True)
    return Room(memory_per_core() // 2, gpu=False)


def least_room(comm: Communicator, mine: Room) -> Room:
    """The smallest of all ranks, on every rank."""
    rooms = [Room(*json.loads(text)) for text in comm.allgather(json.dumps(mine).encode())]
    return Room(min(one.num_bytes for one in rooms), gpu=all(one.gpu for one in rooms))


def memory_per_core(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of the node for each of its cores, or of a control group (version 2) around this process where that is less.

    A job that has a part of the node's memory usually has as large a part of its cores, and is measured by these.
    """
    cores = os.cpu_count() or 1
    total = next(int(line.split()[1]) * 1024 for line in (proc / "meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    shares = [total // cores]
    within = [line[len("0::/") :] for line in (proc / "self" / "cgroup").read_text().splitlines() if line.startswith("0::/")]
    for path in within:
        group = groups / path
        for folder in [group, *group.parents][: len(group.parts) - len(groups.parts) + 1]:
            limit = _read(folder / "memory.max")
            if limit.isdigit():
                shares.append(int(limit) // (_count(_read(folder / "cpuset.cpus.effective")) or cores))
    return min(shares)


def _read(file: Path) -> str:
    """A short file's text; nothing where there is no such file."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _count(ranges: str) -> int:
    """'0-3,8' -> 5."""
    ends = [part.split("-") for part in ranges.split(",") if part]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


@dataclass(frozen=True)
class Place:
    """Where one rank runs, and on what."""

    rank: int
    host: str
    local_rank: int
    device: str
    num_threads: int


def places(comm: Communicator, launch: Launch, device: torch.device, num_threads: int) -> list[Place]:
    """Every rank's place, by rank, on every rank."""
    name = f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "cpu"
    mine = Place(comm.rank, socket.gethostname(), launch.local_rank, name, num_threads)
    return [Place(**json.loads(text)) for text in comm.allgather(json.dumps(asdict(mine)).encode())]
