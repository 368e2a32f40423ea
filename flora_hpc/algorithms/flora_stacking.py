"""Stacking FLoRA: add the mean of B A to the frozen weights, and begin each round with a fresh adapter (Wang et al., NeurIPS 2024).

This FLoRA is another paper than that of method `flora`. Its server stacks the factors of all clients, [B_1 ... B_K] and
[w_1 A_1; ...; w_K A_K], whose product is the mean of B_i A_i.
"""

from typing import Literal

from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, Setting
from flora_hpc.algorithms._lora import need_lora
from flora_hpc.algorithms.fedavg import mean
from flora_hpc.plugins import BaseOptions

FORMULA = "W + scale (mean B_i A_i); a new A and B = 0 in each round"
UP, DOWN = "update", "change of W"
PAPER = "arXiv 2409.05976"


class Options(BaseOptions):
    """Weights of the mean."""

    weights: Literal["examples", "uniform"] = Field("examples", description="by numbers of examples, or the same for every client")


def build(options: Options, setting: Setting) -> Algorithm:
    """The fresh adapter follows from the seed and the round, so that the server sends none."""
    need_lora("flora_stacking", setting)
    combine = mean(options.weights)._replace(fresh=True, merged_ranks=lambda num_clients: num_clients)
    return Algorithm(combine=combine, together=("sharing", "combine", "server"))
