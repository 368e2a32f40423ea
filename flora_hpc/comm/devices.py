"""Which GPU and how many cores this rank may use."""

import json
import os
import socket
from dataclasses import asdict, dataclass

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
