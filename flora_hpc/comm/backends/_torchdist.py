"""A Communicator that uses torch.distributed; `gloo` and `nccl` differ in the device of the tensors."""

import os
import re
import secrets
import socket
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]  # its documented home

from flora_hpc.comm import meeting
from flora_hpc.comm.backends import mpi
from flora_hpc.comm.communicator import Array
from flora_hpc.comm.counters import addresses
from flora_hpc.comm.launch import Launch
from flora_hpc.comm.meeting import Meeting
from flora_hpc.config import CommConfig
from flora_hpc.errors import UserError

NO_MEETING_POINT = (
    "torch.distributed needs to know where its ranks meet: export MASTER_ADDR=<host of rank 0> MASTER_PORT=<a free port>"
)
NUM_PORTS, PORT_STEP = 4, 4001
PATIENT_DAYS = 100  # that ranks wait for each other in a patient group
LATER_SECONDS = 30  # after the watchdog's time limit: the watchdog can name the missing ranks


class TorchDist:
    """A process group of torch.distributed, its tensors on `device`."""

    def __init__(self, name: str, device: torch.device, limit: timedelta, group: Any) -> None:
        self.name, self._device, self._limit, self._group = name, device, limit, group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def allreduce(self, array: Array) -> None:
        tensor = torch.from_numpy(array).to(self._device)
        dist.all_reduce(tensor, group=self._group)
        self._fetch(tensor, array)

    def broadcast(self, array: Array) -> None:
        tensor = torch.from_numpy(array).to(self._device)
        dist.broadcast(tensor, group=self._group, group_src=0)
        self._fetch(tensor, array)

    def _fetch(self, tensor: torch.Tensor, array: Array) -> None:
        """Copy a result from the device into `array`; on a CPU both share one memory."""
        if self._device.type != "cpu":
            array[...] = tensor.cpu().numpy()

    def allgather(self, data: bytes) -> list[bytes]:
        length = torch.tensor([len(data)], device=self._device)
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length, group=self._group)
        sizes = [int(n) for n in lengths]
        sent = torch.zeros(max(sizes), dtype=torch.uint8, device=self._device)
        sent[: len(data)] = torch.from_numpy(np.frombuffer(data, np.uint8).copy()).to(self._device)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent, group=self._group)
        return [part[:size].cpu().numpy().tobytes() for part, size in zip(received, sizes, strict=True)]

    def gather(self, data: bytes) -> list[bytes] | None:
        """Send each rank's bytes to rank 0 alone: `dist.gather` needs equal lengths, and would pad all ranks to the longest one."""
        length = torch.tensor([len(data)], device=self._device)
        lengths = [torch.empty_like(length) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(length, lengths, group=self._group, group_dst=0)
        if lengths is None:
            if data:
                sent = torch.from_numpy(np.frombuffer(data, np.uint8).copy()).to(self._device)
                dist.send(sent, group=self._group, group_dst=0)
            return None
        parts = [torch.empty(int(size), dtype=torch.uint8, device=self._device) for size in lengths]
        works = [dist.irecv(part, group=self._group, group_src=rank) for rank, part in enumerate(parts) if rank and len(part)]
        for work in works:
            assert work is not None, "rank 0 is in the group"
            work.wait()
        return [data, *(part.cpu().numpy().tobytes() for part in parts[1:])]

    def exchange(self, parts: Sequence[bytes]) -> list[bytes]:
        others = [b"" if rank == self.rank else part for rank, part in enumerate(parts)]
        sent_lengths = torch.tensor([len(part) for part in others], device=self._device)
        lengths = torch.empty_like(sent_lengths)
        dist.all_to_all_single(lengths, sent_lengths, group=self._group)
        sizes, sent = lengths.tolist(), np.frombuffer(bytearray().join(others), np.uint8)
        received = torch.empty(sum(sizes), dtype=torch.uint8, device=self._device)
        own = torch.from_numpy(sent).to(self._device)
        dist.all_to_all_single(received, own, sizes, sent_lengths.tolist(), group=self._group)
        dist.barrier(group=self._group)
        pieces = np.split(received.cpu().numpy(), np.cumsum(sizes)[:-1])
        return [parts[rank] if rank == self.rank else piece.tobytes() for rank, piece in enumerate(pieces)]

    def barrier(self) -> None:
        dist.barrier(group=self._group)

    def split(self, color: int, patient: bool = False) -> "TorchDist":
        colors, world_ranks = [int(text) for text in self.allgather(str(color).encode())], dist.get_process_group_ranks(self._group)
        members = [rank for rank, other in zip(world_ranks, colors, strict=True) if other == color]
        limit = timedelta(days=PATIENT_DAYS) if patient else self._limit
        return TorchDist(self.name, self._device, limit, dist.new_group(members, timeout=limit, use_local_synchronization=True))

    def abort(self, code: int) -> NoReturn:
        os._exit(code)

    def close(self) -> None:
        dist.destroy_process_group(self._group)


def connect(name: str, launch: Launch, config: CommConfig, device: torch.device) -> TorchDist:
    """The group of all ranks. Raises UserError where the ranks cannot meet."""
    limit = timedelta(seconds=config.timeout_seconds + LATER_SECONDS)
    if launch.launcher == "torchrun":  # torchrun's agent has the store
        meeting.port_number(os.environ.get("MASTER_PORT", ""))
        meeting.check_hosts((os.environ.get("MASTER_ADDR", ""),))
        dist.init_process_group(name, rank=launch.rank, world_size=launch.size, timeout=limit)
    else:
        store = HashStore() if launch.size == 1 else meeting.meet(launch, place(launch), config.timeout_seconds)
        dist.init_process_group(name, store=store, rank=launch.rank, world_size=launch.size, timeout=limit)
    return TorchDist(name, device, limit, dist.group.WORLD)


def place(launch: Launch, environ: Mapping[str, str] = os.environ) -> Meeting:
    """The meeting point of the ranks: MASTER_ADDR and MASTER_PORT, or values that every rank can compute.

    Under Slurm, job id and step id give a few ports, and rank 0 opens the first free port.
    """
    host, port = environ.get("MASTER_ADDR", ""), environ.get("MASTER_PORT", "")
    hosts: tuple[str, ...] = (host,) if host else ()
    ports: tuple[int, ...] = (meeting.port_number(port),) if port else ()
    token = f"{environ.get('SLURM_JOB_ID', '')}.{environ.get('SLURM_STEP_ID', '')}.{launch.size}"
    if launch.launcher == "slurm":
        numbers = [environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
        if not ports and not all(number.isdecimal() for number in numbers):
            raise UserError(f"SLURM_JOB_ID is {numbers[0]!r} and SLURM_STEP_ID {numbers[1]!r}, no numbers; {NO_MEETING_POINT}")
        job, step = (int(number) if number.isdecimal() else 0 for number in numbers)
        ports = ports or tuple(20000 + (job * 7 + step + i * PORT_STEP) % 20000 for i in range(NUM_PORTS))
        hosts = hosts or (first_node(environ.get("SLURM_STEP_NODELIST", "")),)
    elif launch.launcher in ("openmpi", "mpich") and not (hosts and ports):
        try:
            world = mpi.load(launch).COMM_WORLD
        except UserError as error:
            raise UserError(f"{NO_MEETING_POINT} (MPI, which could tell them, does not help: {error})") from None
        rank_place = ((socket.gethostname(), *addresses()), (_free_port(),), secrets.token_hex(8))
        root_hosts, root_ports, token = world.bcast(rank_place, root=0)
        hosts, ports = hosts or root_hosts, ports or root_ports
    if not (hosts and ports):
        raise UserError(NO_MEETING_POINT)
    return Meeting(hosts, ports, token)


def first_node(nodes: str) -> str:
    """The first host of Slurm's list: 'node[03-05,8],login' -> 'node03'. (Containers often lack scontrol.)"""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if first is None:
        raise UserError(f"SLURM_STEP_NODELIST is {nodes!r}; {NO_MEETING_POINT}")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
