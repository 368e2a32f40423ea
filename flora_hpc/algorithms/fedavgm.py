"""FedAvgM: server momentum, in PyTorch's form (Hsu et al., 2019)."""

import torch
from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, Now, Server, Setting
from flora_hpc.plugins import BaseOptions

FORMULA = "m = momentum m + mean update; adapter + lr m"
UP, DOWN = "update", "adapter"
PAPER = "arXiv 1909.06335"


class Options(BaseOptions):
    """The server's step."""

    momentum: float = Field(0.9, ge=0, lt=1, description="share of the last step that is kept; 0 is FedAvg with a server step")
    lr: float = Field(1.0, gt=0, allow_inf_nan=False, description="server step")


def build(options: Options, setting: Setting) -> Algorithm:
    """Momentum without dampening, as torch.optim.SGD has it with the negative mean update as gradient."""

    def init(adapter: torch.Tensor) -> torch.Tensor | None:
        return torch.zeros_like(adapter) if options.momentum else None

    def apply(
        adapter: torch.Tensor, direction: torch.Tensor, velocity: torch.Tensor | None, now: Now
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if velocity is None:
            return adapter + options.lr * direction, None
        velocity = options.momentum * velocity + direction
        return adapter + options.lr * velocity, velocity

    return Algorithm(server=Server(init, apply))
