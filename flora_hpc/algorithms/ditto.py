"""Ditto: each client also trains a model of its own, pulled towards the server's adapter (Li et al., ICML 2021)."""

import torch
from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, Local, LocalStep, Setting
from flora_hpc.plugins import BaseOptions

FORMULA = "fedavg, and v_i with gradient(v_i) + lambda (v_i - adapter)"
UP, DOWN = "update", "adapter"
PAPER = "arXiv 2012.04221"


class Options(BaseOptions):
    """The pull."""

    weight: float = Field(0.1, ge=0, allow_inf_nan=False, description="lambda, of the pull towards the server's adapter")


def build(options: Options, setting: Setting) -> Algorithm:
    """The personal model is trained on the same batches as the update, with an optimizer that starts afresh in every round."""

    def personal(gradient: torch.Tensor, step: LocalStep) -> torch.Tensor:
        return gradient + options.weight * (step.params - step.start)

    return Algorithm(local=Local(personal=personal))
