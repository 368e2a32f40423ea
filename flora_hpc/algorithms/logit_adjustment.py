"""Logit adjustment: the logarithm of a client's class shares is added to its scores (Menon et al., ICLR 2021)."""

import torch
from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, Local, Setting
from flora_hpc.algorithms.logit_calibration import mean_cross_entropy
from flora_hpc.plugins import BaseOptions

FORMULA = "cross entropy of scores + tau log p_i(c), p_i(c) the share of class c among the client's examples"
UP, DOWN = "update", "adapter"
PAPER = "arXiv 2007.07314"


class Options(BaseOptions):
    """The adjustment."""

    tau: float = Field(1.0, ge=0, allow_inf_nan=False, description="strength")


def build(options: Options, setting: Setting) -> Algorithm:
    """A loss with the client's class counts; classes without examples leave the softmax."""

    def loss(scores: torch.Tensor, labels: torch.Tensor, present: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        counts = counts.to(scores.dtype)
        shares = counts / counts.sum(1, keepdim=True)
        adjusted = scores + options.tau * shares.clamp(min=torch.finfo(scores.dtype).tiny).log()[:, None]
        return mean_cross_entropy(adjusted.masked_fill(counts[:, None] == 0, -torch.inf), labels, present)

    return Algorithm(local=Local(loss=loss))
