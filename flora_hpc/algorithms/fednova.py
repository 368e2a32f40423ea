"""FedNova: updates are divided by what their clients did, and the mean is scaled by its mean (Wang et al., NeurIPS 2020)."""

import torch
from pydantic import Field

from flora_hpc.algorithms import fedprox
from flora_hpc.algorithms._algorithm import Algorithm, Combine, Now, Setting, Tensors
from flora_hpc.errors import UserError
from flora_hpc.plugins import BaseOptions

FORMULA = (
    "adapter + (sum w_i a_i) sum w_i update_i / a_i; a_i: local steps, or their sum of weights under momentum or a proximal term"
)
UP, DOWN = "update / a_i, a_i", "adapter"
PAPER = "arXiv 2007.07481"
SCALE = (
    2.0**20
)  # of a_i: an exact sum takes products of weight and number below 2^25, and a client may have many examples and steps


class Options(BaseOptions):
    """The proximal term of local training."""

    mu: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="weight of a proximal term as in fedprox, which a_i then allows for"
    )


def build(options: Options, setting: Setting) -> Algorithm:
    """The paper has a_i for SGD; for other optimizers a_i is the number of steps."""
    client = setting.client
    is_sgd = client.optimizer == "sgd"
    if client.momentum and client.optimizer_state == "keep":
        raise UserError(
            f"{setting.section}.name: fednova's a_i begins each round without momentum, which client.optimizer_state: keep keeps; "
            "set client.optimizer_state: reset"
        )

    def prepare(update: torch.Tensor, num_steps: torch.Tensor) -> dict[str, torch.Tensor]:
        a = normalizer(num_steps, client.momentum if is_sgd else 0.0, options.mu if is_sgd else 0.0, client.lr)
        a = a.to(update.dtype)
        return {"update": update / a, "normalizer": a / SCALE}

    def finish(means: Tensors, now: Now) -> torch.Tensor:
        return means["update"] * (means["normalizer"] * SCALE)

    return Algorithm(
        local=fedprox.pull(options.mu) if options.mu else None,
        combine=Combine(lambda num_examples: num_examples, finish, prepare, {"normalizer": 1}),
        together=("local", "combine"),
        warnings=()
        if is_sgd
        else (f"fednova: its paper normalises the steps of SGD; with {client.optimizer}, every local step counts as one",),
    )


def normalizer(num_steps: torch.Tensor, momentum: float, mu: float, lr: float) -> torch.Tensor:
    """a_i (num_clients, 1) float64 of clients with `num_steps` (num_clients, 1): how much of its gradients an update has.

    a_i is the update of a client whose gradient is 1 in every step, divided by -lr. Without momentum and proximal term this is
    the number of steps. With one of the two it is the paper's a_i; the paper has none for both at once.
    """
    sums, velocity = [0.0], 0.0
    for _ in range(int(num_steps.max())):
        velocity = momentum * velocity + 1 - mu * lr * sums[-1]
        sums.append(sums[-1] + velocity)
    return torch.tensor(sums, dtype=torch.float64, device=num_steps.device)[num_steps.long()]
