"""FedDyn: a linear and a quadratic term make the clients' optima agree with the common one (Acar et al., ICLR 2021)."""

import torch
from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, Ended, Local, LocalStep, Now, Server, Setting
from flora_hpc.algorithms.fedavg import mean
from flora_hpc.plugins import BaseOptions

FORMULA = (
    "gradient - h_i + alpha (params - start); h_i - alpha update_i; "
    "h - alpha sum of updates / registered clients; mean of the clients' params - h / alpha"
)
UP, DOWN = "update", "adapter"
PAPER = "arXiv 2111.04263"
State = torch.Tensor  # h, (num_params,)


class Options(BaseOptions):
    """The regularisation."""

    alpha: float = Field(0.1, gt=0, allow_inf_nan=False, description="weight of the quadratic term")


def build(options: Options, setting: Setting) -> Algorithm:
    """All clients have the same weight, as in the paper."""
    alpha = options.alpha

    def gradient(gradient: torch.Tensor, step: LocalStep) -> torch.Tensor:
        return gradient - step.memory["h"] + alpha * (step.params - step.start)

    def end(ended: Ended) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return {}, {"h": ended.memory["h"] - alpha * ended.updates}

    def apply(adapter: torch.Tensor, direction: torch.Tensor, h: State, now: Now) -> tuple[torch.Tensor, State]:
        h = h - alpha * (now.num_clients / now.num_registered) * direction
        return adapter + direction - h / alpha, h

    return Algorithm(
        local=Local(gradient, end=end, memory=("h",)),
        combine=mean("uniform"),
        server=Server(torch.zeros_like, apply),
        together=("local", "combine", "server"),
    )
