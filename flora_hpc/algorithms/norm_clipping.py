"""Norm clipping: an update longer than a bound is shortened to it before the mean (Sun et al., 2019)."""

from typing import Literal

import torch
from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, Setting
from flora_hpc.algorithms.fedavg import mean
from flora_hpc.clip.steady import row_sums
from flora_hpc.plugins import BaseOptions

FORMULA = "adapter + weighted mean of update_i min(1, bound / |update_i|)"
UP, DOWN = "update", "adapter"
PAPER = "arXiv 1911.07963"


class Options(BaseOptions):
    """The bound."""

    bound: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="longest norm of an update; the column update_norm of /clients has what there is",
    )
    weights: Literal["examples", "uniform"] = Field("examples", description="by numbers of examples, or the same for every client")


def build(options: Options, setting: Setting) -> Algorithm:
    """Exact sums suffice, so that it takes as little time and memory as fedavg."""

    def prepare(update: torch.Tensor, num_steps: torch.Tensor) -> dict[str, torch.Tensor]:
        norms = row_sums(update.double().square()).sqrt()
        return {"update": update * (options.bound / norms).clamp(max=1.0)[:, None].to(update.dtype)}

    return Algorithm(combine=mean(options.weights)._replace(prepare=prepare))
