"""FedAvg: add the mean update, weighted by numbers of examples (McMahan et al., AISTATS 2017)."""

from typing import Literal

import torch
from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, Combine, Local, Now, Server, Setting, Sharing, Tensors
from flora_hpc.plugins import BaseOptions

FORMULA = "adapter + sum w_i update_i / sum w_i"
UP, DOWN = "update", "adapter"
PAPER = "arXiv 1602.05629"


class Options(BaseOptions):
    """Weights of the mean."""

    weights: Literal["examples", "uniform"] = Field("examples", description="by numbers of examples, or the same for every client")
    denominator: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="divide the weighted sum by this constant instead of the sum of weights"
    )


def build(options: Options, setting: Setting) -> Algorithm:
    """All five parts; other algorithms take from here what they leave out."""
    return Algorithm(
        Sharing(lambda name, number: "shared"),
        Local(),
        None,
        mean(options.weights, options.denominator),
        Server(lambda adapter: None, add),
    )


def mean(weights: str = "examples", denominator: float | None = None) -> Combine:
    """The weighted mean, or the weighted sum divided by a constant."""

    def weigh(num_examples: torch.Tensor) -> torch.Tensor:
        return num_examples if weights == "examples" else torch.ones_like(num_examples)

    def finish(means: Tensors, now: Now) -> torch.Tensor:
        return means["update"] if denominator is None else means["update"] * (now.weight / denominator)

    return Combine(weigh, finish)


def add(adapter: torch.Tensor, direction: torch.Tensor, state: None, now: Now) -> tuple[torch.Tensor, None]:
    """Add the direction to the adapter."""
    return adapter + direction, state
