"""Logit calibration: scores of a client's rare classes are lowered in its loss (Zhang et al., "FedLC", ICML 2022).

In this project `fedlc` is another paper's method, a linear classifier; hence the name.
"""

from typing import Literal

import torch
from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, Local, Setting
from flora_hpc.plugins import BaseOptions

FORMULA = (
    "cross entropy of scores - tau n_ic^(-1/4), n_ic the client's examples of class c; classes without examples leave the softmax"
)
UP, DOWN = "update", "adapter"
PAPER = "arXiv 2209.00189"


class Options(BaseOptions):
    """The calibration."""

    tau: float = Field(1.0, ge=0, allow_inf_nan=False, description="strength")
    denominator: Literal["all", "others"] = Field(
        "all", description="sum over all classes, as in most code, or over all but the right one, as in the paper"
    )


def build(options: Options, setting: Setting) -> Algorithm:
    """A loss with the client's class counts."""

    def loss(scores: torch.Tensor, labels: torch.Tensor, present: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        lowered = scores - options.tau * counts.to(scores.dtype).clamp(min=1).pow(-0.25)[:, None]
        lowered = lowered.masked_fill(counts[:, None] == 0, -torch.inf)
        return mean_cross_entropy(lowered, labels, present, without_label=options.denominator == "others")

    return Algorithm(local=Local(loss=loss))


def mean_cross_entropy(
    scores: torch.Tensor, labels: torch.Tensor, present: torch.Tensor, without_label: bool = False
) -> torch.Tensor:
    """Cross entropy (num_clients,) of scores (num_clients, batch, num_classes), as `flora_hpc.losses` have it.

    `without_label` leaves the right class out of the sum of the softmax.
    """
    weights = present.to(scores.dtype)
    right = scores.gather(2, labels[:, :, None]).squeeze(2)
    summed = scores.scatter(2, labels[:, :, None], -torch.inf) if without_label else scores
    summed = torch.where(summed.isinf().all(2, keepdim=True), scores, summed)  # a client of one class has no others
    return ((summed.logsumexp(2) - right) * weights).sum(1) / weights.sum(1)
