"""torch.distributed between GPUs; every rank needs a GPU of its own."""

import torch

from flora_hpc.comm.backends._torchdist import TorchDist
from flora_hpc.comm.launch import Launch
from flora_hpc.config import CommConfig
from flora_hpc.errors import UserError


def available(launch: Launch, config: CommConfig) -> bool:
    """Whether every rank of this node has a GPU of its own and is meant to use it."""
    return config.device != "cpu" and torch.cuda.is_available() and torch.cuda.device_count() >= launch.local_size


def build(launch: Launch, config: CommConfig) -> TorchDist:
    if not available(launch, config):
        raise UserError(
            f"backend 'nccl' needs a GPU for each of the {launch.local_size} ranks of this node; "
            f"{torch.cuda.device_count()} seen and comm.device is {config.device}: set comm.backend: gloo or mpi"
        )
    device = torch.device("cuda", launch.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return TorchDist("nccl", launch, config, device)
