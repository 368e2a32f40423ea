"""FedProx: a pull towards the server's adapter in every local step (Li et al., MLSys 2020)."""

import torch
from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, Local, LocalStep, Setting
from flora_hpc.plugins import BaseOptions

FORMULA = "gradient + mu (params - start), start the server's adapter"
UP, DOWN = "update", "adapter"
PAPER = "arXiv 1812.06127"


class Options(BaseOptions):
    """The pull."""

    mu: float = Field(0.01, ge=0, allow_inf_nan=False, description="weight of the proximal term")


def build(options: Options, setting: Setting) -> Algorithm:
    """A proximal term in the local objective, mu / 2 |params - start|^2."""
    return Algorithm(local=pull(options.mu))


def pull(mu: float) -> Local:
    """Local training with a proximal term."""

    def gradient(gradient: torch.Tensor, step: LocalStep) -> torch.Tensor:
        return gradient + mu * (step.params - step.start)

    return Local(gradient)
