"""Which GPU and how many cores this rank may use."""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from flora_hpc.comm import gpus, quota
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


def share_cores(comm: Communicator, launch: Launch) -> int:
    """Set and return the number of threads of this rank: its cores, divided among the ranks that may use the same ones.

    A launcher that binds ranks gives each its own cores; one that does not gives all ranks of a node the same set. Upper bounds are
    a rank's share of the control groups' quotas, Slurm's --cpus-per-task, and the user's OMP_NUM_THREADS.
    """
    cores, here, quotas = sorted(os.sched_getaffinity(0)), machine(), quota.quotas()
    sent = comm.allgather(json.dumps([here, cores, quotas]).encode())
    everyone: list[tuple[str, list[int], dict[str, float]]] = [json.loads(text) for text in sent]
    sharing = sum(there == here and theirs == cores for there, theirs, _ in everyone)
    num_threads = max(1, len(cores) // sharing)
    limit = quota.share(here, [(there, theirs) for there, _, theirs in everyone], quotas)
    if limit is not None:  # a thread that the quota stops keeps the others waiting
        num_threads = max(1, min(num_threads, int(limit)))
    if launch.launcher == "slurm" and os.environ.get("SLURM_CPUS_PER_TASK", "").isdigit():
        num_threads = min(num_threads, int(os.environ["SLURM_CPUS_PER_TASK"]))
    num_threads = min(num_threads, wished_threads(launch) or num_threads)
    torch.set_num_threads(num_threads)
    return num_threads


def wished_threads(launch: Launch, environ: Mapping[str, str] = os.environ, parent: Path | None = None) -> int | None:
    """OMP_NUM_THREADS where the user has set it; None otherwise.

    torchrun sets it to 1 for every rank when there are several and nobody else has. Then the variable is missing from the
    environment with which torchrun itself, the `parent`, was started.
    """
    text = environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if not text.isdigit() or int(text) == 0:
        return None
    if launch.launcher == "torchrun" and launch.local_size > 1 and text == "1":
        before = _read(parent or Path(f"/proc/{os.getppid()}/environ"))
        if not any(entry.startswith("OMP_NUM_THREADS=") for entry in before.split("\0")):
            return None
    return int(text)


def machine() -> str:
    """This machine, for comparing: its name and when it was started, since containers on different nodes may have equal names."""
    return f"{socket.gethostname()} {_read(Path('/proc/sys/kernel/random/boot_id'))}"


def gpu(device: torch.device) -> str:
    """The GPU behind `device`, for comparing: two ranks may each call another one cuda:0. Empty for the CPU."""
    if device.type != "cuda":
        return ""
    return f"{machine()} {getattr(torch.cuda.get_device_properties(device), 'uuid', device)}"


def sharing(comm: Communicator, device: torch.device) -> int:
    """How many ranks compute on this rank's GPU; 1 for the CPU. All ranks call this."""
    mine = gpu(device).encode()
    everyone = comm.allgather(mine)
    return everyone.count(mine) if mine else 1


class Room(NamedTuple):
    """Memory that a group of clients may take, and whether it is a GPU's."""

    num_bytes: int
    gpu: bool


def room(device: torch.device, num_sharing: int = 1) -> Room:
    """Half of this rank's part of a GPU's memory, which `num_sharing` ranks share.

    Or half of what the node has for each core, so that it holds whatever the number of ranks.
    """
    if device.type == "cuda":
        return Room(torch.cuda.get_device_properties(device).total_memory // 2 // num_sharing, gpu=True)
    return Room(memory_per_core() // 2, gpu=False)


def least_room(comm: Communicator, mine: Room) -> Room:
    """The smallest of all ranks, on every rank."""
    rooms = [Room(*json.loads(text)) for text in comm.allgather(json.dumps(mine).encode())]
    return Room(min(one.num_bytes for one in rooms), gpu=any(one.gpu for one in rooms))


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
class RankPlace:
    """Where one rank runs, and on what."""

    rank: int
    host: str
    local_rank: int
    device: str
    num_threads: int


def places(comm: Communicator, launch: Launch, device: torch.device, num_threads: int) -> list[RankPlace]:
    """Every rank's place, by rank, on every rank."""
    name = f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "cpu"
    mine = RankPlace(comm.rank, socket.gethostname(), launch.local_rank, name, num_threads)
    everyone = [json.loads(text) for text in comm.allgather(json.dumps([asdict(mine), gpu(device)]).encode())]
    used = [each[1] for each in everyone if each[1]]
    return [
        replace(place, device=f"{place.device} shared by {used.count(on)} ranks") if used.count(on) > 1 else place
        for place, on in ((RankPlace(**fields), on) for fields, on in everyone)
    ]
