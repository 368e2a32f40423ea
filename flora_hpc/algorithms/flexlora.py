"""FlexLoRA: average the products B A, and make A and B of the mean by a singular value decomposition (Bai et al., 2024).

The mean of B A has a larger rank than the adapter. The server takes the largest singular values of the mean and their vectors, as
many as the adapter has ranks. Clients of a smaller rank receive the first ones.
"""

from typing import Literal

import torch
from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, LayerMeans, Setting
from flora_hpc.algorithms._lora import need_lora, svd_of_mean
from flora_hpc.algorithms.fedavg import mean
from flora_hpc.plugins import BaseOptions

FORMULA = "U S V = SVD of mean B_i A_i, cut to the adapter's rank; B = U S, A = V"
UP, DOWN = "update", "adapter"
PAPER = "arXiv 2402.11505"


class Options(BaseOptions):
    """Weights of the mean, and the place of the singular values."""

    weights: Literal["examples", "uniform"] = Field("examples", description="by numbers of examples, or the same for every client")
    values: Literal["B", "A", "both"] = Field(
        "B", description="factor that the singular values go to, the paper's is B; both: a root of them to each"
    )


def build(options: Options, setting: Setting) -> Algorithm:
    """The server of FedAvg, with new factors instead of its own."""
    need_lora("flexlora", setting)

    def factors(means: LayerMeans) -> tuple[torch.Tensor, torch.Tensor]:
        left, values, right = svd_of_mean(means)
        of_b = values ** {"B": 1.0, "A": 0.0, "both": 0.5}[options.values]
        of_a = values ** {"B": 0.0, "A": 1.0, "both": 0.5}[options.values]
        return of_a[:, None] * right, left * of_b

    return Algorithm(combine=mean(options.weights)._replace(factors=factors), together=("sharing", "combine", "server"))
