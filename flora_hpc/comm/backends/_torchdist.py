"""torch.distributed behind the Communicator's face; `gloo` and `nccl` differ in where the tensors lie."""

import os
import re
import socket
from datetime import timedelta
from typing import NoReturn

import numpy as np
import torch
import torch.distributed as dist

from flora_hpc.comm.backends import mpi
from flora_hpc.comm.communicator import Array
from flora_hpc.comm.launch import Launch
from flora_hpc.config import CommConfig
from flora_hpc.errors import UserError

NO_MEETING_POINT = (
    "torch.distributed needs to know where its ranks meet: export MASTER_ADDR=<host of rank 0> MASTER_PORT=<a free port>"
)
LATER_SECONDS = 30  # than the watchdog, which can say who did not come


class TorchDist:
    """The default process group of torch.distributed, its tensors on `device`."""

    def __init__(self, name: str, launch: Launch, config: CommConfig, device: torch.device) -> None:
        self.name, self._device = name, device
        _name_meeting_point(launch)
        limit = timedelta(seconds=config.timeout_seconds + LATER_SECONDS)
        dist.init_process_group(name, rank=launch.rank, world_size=launch.size, timeout=limit)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def allreduce(self, array: Array) -> None:
        tensor = torch.from_numpy(array).to(self._device)
        dist.all_reduce(tensor)
        self._fetch(tensor, array)

    def broadcast(self, array: Array) -> None:
        tensor = torch.from_numpy(array).to(self._device)
        dist.broadcast(tensor, src=0)
        self._fetch(tensor, array)

    def _fetch(self, tensor: torch.Tensor, array: Array) -> None:
        """Copy a result from the device; on a CPU the tensor is the array's own memory."""
        if self._device.type != "cpu":
            array[...] = tensor.cpu().numpy()

    def allgather(self, data: bytes) -> list[bytes]:
        length = torch.tensor([len(data)], device=self._device)
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length)
        sizes = [int(n) for n in lengths]
        sent = torch.zeros(max(sizes), dtype=torch.uint8, device=self._device)
        sent[: len(data)] = torch.from_numpy(np.frombuffer(data, np.uint8).copy()).to(self._device)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent)
        return [part[:size].cpu().numpy().tobytes() for part, size in zip(received, sizes, strict=True)]

    def gather(self, data: bytes) -> list[bytes] | None:
        everything = self.allgather(data)  # gloo and nccl gather only equal lengths, and records are small
        return everything if self.rank == 0 else None

    def barrier(self) -> None:
        dist.barrier()

    def abort(self, code: int) -> NoReturn:
        os._exit(code)

    def close(self) -> None:
        dist.destroy_process_group()


def _name_meeting_point(launch: Launch) -> None:
    """Set MASTER_ADDR and MASTER_PORT, by which ranks find each other, unless the launcher or the user has."""
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return
    if launch.size == 1:
        address, port = "127.0.0.1", _free_port()
    elif launch.launcher == "slurm":
        job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ["SLURM_STEP_ID"])
        address, port = first_node(os.environ["SLURM_STEP_NODELIST"]), 20000 + (job * 7 + step) % 20000
    elif launch.launcher in ("openmpi", "mpich"):
        try:
            world = mpi.load(launch).COMM_WORLD
        except UserError as error:
            raise UserError(f"{NO_MEETING_POINT} (MPI, which could tell them, does not help: {error})") from None
        address, port = world.bcast((socket.gethostname(), _free_port()), root=0)
    else:
        raise UserError(NO_MEETING_POINT)
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}


def first_node(nodes: str) -> str:
    """The first host of Slurm's list: 'node[03-05,8],login' -> 'node03'. Containers often lack scontrol."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if first is None:
        raise UserError(f"SLURM_STEP_NODELIST is {nodes!r}; {NO_MEETING_POINT}")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
