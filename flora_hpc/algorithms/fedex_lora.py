"""FedEx-LoRA: average A and B, and add what they leave of the mean of B A to the frozen weights (Singhal et al., ACL 2025)."""

from typing import Literal

import torch
from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, LayerMeans, Setting
from flora_hpc.algorithms._lora import need_lora
from flora_hpc.algorithms.fedavg import mean
from flora_hpc.plugins import BaseOptions

FORMULA = "mean of A, mean of B; W + scale (mean B_i A_i - mean B_i mean A_i)"
UP, DOWN = "update", "adapter, change of W"
PAPER = "arXiv 2410.09432"


class Options(BaseOptions):
    """Weights of the mean."""

    weights: Literal["examples", "uniform"] = Field("examples", description="by numbers of examples, or the same for every client")


def build(options: Options, setting: Setting) -> Algorithm:
    """The mean adapter; the rest, which has the rank of the adapter times the number of clients less one, is merged."""
    need_lora("fedex_lora", setting)

    def factors(means: LayerMeans) -> tuple[torch.Tensor, torch.Tensor]:
        return means.a, means.b

    combine = mean(options.weights)._replace(factors=factors, merged_ranks=lambda num_clients: num_clients - 1)
    return Algorithm(combine=combine, together=("sharing", "combine", "server"))
