"""SCAFFOLD: control variates take the drift of each client out of its steps (Karimireddy et al., ICML 2020).

A client's control variate c_i is the mean of its gradients along its path of the last round. With SGD this equals the paper's
option II, c_i - c + (x - y) / (steps * lr); it is also defined for Adam, whose steps are no gradients.
"""

import torch
from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, Ended, Local, LocalStep, Now, Server, Setting
from flora_hpc.algorithms.fedavg import mean
from flora_hpc.plugins import BaseOptions

FORMULA = (
    "gradient - c_i + c; c_i = mean gradient of the round; adapter + lr mean update; "
    "c + sum of the changes of c_i / registered clients"
)
UP, DOWN = "update, change of c_i", "adapter, c"
PAPER = "arXiv 1910.06378"
State = torch.Tensor  # c, (num_params,)


class Options(BaseOptions):
    """The server's step."""

    lr: float = Field(1.0, gt=0, allow_inf_nan=False, description="server step")


def build(options: Options, setting: Setting) -> Algorithm:
    """Control variates of clients, and their mean at the server. All clients have the same weight, as in the paper."""

    def gradient(gradient: torch.Tensor, step: LocalStep) -> torch.Tensor:
        return gradient - step.memory["control"] + step.message["control"]

    def end(ended: Ended) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        assert ended.gradient_sum is not None
        control = ended.gradient_sum / ended.num_steps
        return {"control": control - ended.memory["control"]}, {"control": control}

    def apply(adapter: torch.Tensor, direction: torch.Tensor, control: State, now: Now) -> tuple[torch.Tensor, State]:
        return adapter + options.lr * direction, control + (now.num_clients / now.num_registered) * now.means["control"]

    return Algorithm(
        local=Local(gradient, end=end, memory=("control",), needs=("control",), sends=("control",), sums_gradients=True),
        combine=mean("uniform"),
        server=Server(torch.zeros_like, apply, lambda control: {"control": control}, ("control",), ("control",)),
    )
