"""The common part of FedAdam, FedYogi and FedAdagrad (Reddi et al., ICLR 2021): a step scaled by the root of squared directions.

The paper corrects no bias. Its second moment starts at tau^2 or more; most implementations start at 0, which is the default here.
"""

from collections.abc import Callable

import torch
from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, Now, Server
from flora_hpc.plugins import BaseOptions

State = tuple[torch.Tensor, torch.Tensor, int]  # first and second moment, (num_params,) each, and the number of steps so far
Second = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # second moment, squared direction -> the next second moment


class AdaptiveOptions(BaseOptions):
    """The server's step."""

    lr: float = Field(0.01, gt=0, allow_inf_nan=False, description="server step; updates of LoRA are small, so 0.1 is too large")
    tau: float = Field(1e-3, gt=0, allow_inf_nan=False, description="adaptivity: added to the root of the second moment")
    v0: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="second moment before the first round; the paper has tau^2 or more"
    )


def build(options: AdaptiveOptions, beta1: float, second: Second, corrected: tuple[float, float] | None = None) -> Algorithm:
    """x + lr m / (sqrt v + tau), with m = beta1 m + (1 - beta1) direction, and v from `second`.

    `corrected` has the decays of m and v, whose bias by their start is then corrected as in Adam.
    """

    def init(adapter: torch.Tensor) -> State:
        return torch.zeros_like(adapter), torch.full_like(adapter, options.v0), 0

    def apply(adapter: torch.Tensor, direction: torch.Tensor, state: State, now: Now) -> tuple[torch.Tensor, State]:
        mean, square, steps = state
        mean = beta1 * mean + (1 - beta1) * direction
        square = second(square, direction * direction)
        state = mean, square, steps + 1
        if corrected is not None:
            mean, square = (moment / (1 - beta ** (steps + 1)) for moment, beta in zip((mean, square), corrected, strict=True))
        return adapter + options.lr * mean / (square.sqrt() + options.tau), state

    return Algorithm(server=Server(init, apply))
