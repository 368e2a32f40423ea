"""torch.distributed over TCP between hosts' memories; needs no MPI."""

import torch

from flora_hpc.comm.backends import _torchdist
from flora_hpc.comm.backends._torchdist import TorchDist
from flora_hpc.comm.launch import Launch
from flora_hpc.config import CommConfig


def build(launch: Launch, config: CommConfig) -> TorchDist:
    return _torchdist.connect("gloo", launch, config, torch.device("cpu"))
