"""FedYogi: FedAdam whose second moment changes by sign, so that it cannot jump (Reddi et al., ICLR 2021)."""

import torch
from pydantic import Field

from flora_hpc.algorithms import _adaptive
from flora_hpc.algorithms._algorithm import Algorithm, Setting

FORMULA = "as fedadam, with v = v - (1 - beta2) d^2 sign(v - d^2)"
UP, DOWN = "update", "adapter"
PAPER = "arXiv 2003.00295"


class Options(_adaptive.AdaptiveOptions):
    """The server's step and its two memories."""

    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.99, ge=0, lt=1, description="decay of the second moment")


def build(options: Options, setting: Setting) -> Algorithm:
    """Yogi's second moment."""

    def second(square: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return square - (1 - options.beta2) * new * torch.sign(square - new)

    return _adaptive.build(options, options.beta1, second)
