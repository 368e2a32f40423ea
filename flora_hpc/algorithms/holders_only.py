"""Holders only, or RBLA: with clients of different ranks, average each number over the clients that hold it (Chen et al., 2024).

A rank that few clients hold is then not drawn towards zero, as it is where missing ranks are padded with zeros.
"""

from typing import Literal

import torch
from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, Now, Setting, Tensors
from flora_hpc.algorithms.fedavg import mean
from flora_hpc.plugins import BaseOptions

FORMULA = "adapter + sum w_i update_i / sum w_i, both over the clients that hold the number"
UP, DOWN = "update", "adapter"
PAPER = "arXiv 2408.08699"


class Options(BaseOptions):
    """Weights of the mean."""

    weights: Literal["examples", "uniform"] = Field("examples", description="by numbers of examples, or the same for every client")


def build(options: Options, setting: Setting) -> Algorithm:
    """Numbers that no client of the round holds stay as they are."""

    def finish(means: Tensors, now: Now) -> torch.Tensor:
        if "held" not in means:
            return means["update"]
        return torch.where(means["held"] > 0, means["update"] / means["held"], 0.0)

    return Algorithm(combine=mean(options.weights)._replace(finish=finish, by_holder=True))
