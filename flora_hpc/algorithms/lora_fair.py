"""LoRA-FAIR: average A and B, then correct B so that B A comes close to the mean of B_i A_i (after Bian et al., ICCV 2025).

The correction has the least |(B + dB) A - mean B_i A_i|^2 + penalty |dB|^2, which has a closed form. The paper has a cosine instead
of the first square.
"""

from typing import Literal

import torch
from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, LayerMeans, Setting
from flora_hpc.algorithms._lora import need_lora
from flora_hpc.algorithms.fedavg import mean
from flora_hpc.plugins import BaseOptions

FORMULA = "A = mean A_i; B = mean B_i + dB with the least |B A - mean B_i A_i|^2 + penalty |dB|^2"
UP, DOWN = "update", "adapter"
PAPER = "arXiv 2411.14961"


class Options(BaseOptions):
    """Weights of the mean, and how far B may be corrected."""

    weights: Literal["examples", "uniform"] = Field("examples", description="by numbers of examples, or the same for every client")
    penalty: float = Field(0.01, ge=0, allow_inf_nan=False, description="weight of the squared correction; 0 is the closest B A")


def build(options: Options, setting: Setting) -> Algorithm:
    """The server of FedAvg, with another B."""
    need_lora("lora_fair", setting)

    def factors(means: LayerMeans) -> tuple[torch.Tensor, torch.Tensor]:
        damped = means.a @ means.a.T + options.penalty * torch.eye(len(means.a), dtype=means.a.dtype)
        right = means.product @ means.a.T + options.penalty * means.b
        return means.a, right @ torch.linalg.pinv(damped, hermitian=True)  # also where A has less than its rank

    return Algorithm(combine=mean(options.weights)._replace(factors=factors), together=("sharing", "combine", "server"))
