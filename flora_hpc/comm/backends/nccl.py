"""torch.distributed between GPUs; every rank needs a GPU of its own."""

import os

import torch

from flora_hpc.comm import devices, gpus
from flora_hpc.comm.backends import _torchdist
from flora_hpc.comm.backends._torchdist import TorchDist
from flora_hpc.comm.launch import Launch
from flora_hpc.config import CommConfig
from flora_hpc.errors import UserError


def available(launch: Launch, config: CommConfig) -> bool:
    """Whether every rank of this node has a GPU of its own, and the configuration allows GPUs."""
    num_visible = torch.cuda.device_count() if config.device != "cpu" else 0
    return num_visible > 0 and gpus.one_each(num_visible, launch, os.environ)


def unfit(launch: Launch, config: CommConfig) -> str:
    """Why NCCL cannot be used here."""
    if config.device == "cpu":
        return "comm.device is cpu"
    if (num_visible := torch.cuda.device_count()) == 0:
        return "PyTorch sees no GPU"
    return f"{launch.local_size} ranks share {num_visible} GPU{'s' * (num_visible > 1)}, and NCCL needs one for each"


def build(launch: Launch, config: CommConfig) -> TorchDist:
    if not available(launch, config):
        raise UserError(f"backend 'nccl' needs a GPU for each rank, but {unfit(launch, config)}: set comm.backend: gloo or mpi")
    return _torchdist.connect("nccl", launch, config, devices.pick(launch, config))
