"""Gaussian: attackers send noise instead of their update."""

import numpy as np
import torch
from pydantic import Field

from flora_hpc.attacks._attack import Attack, AttackOptions
from flora_hpc.clip.steady import row_sums


class Options(AttackOptions):
    """The size of the noise."""

    scale: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="root mean square of the noise, in those of the attacker's update"
    )


def build(options: Options) -> Attack:
    """The noise of each attacker and round is its own."""

    def alone(update: torch.Tensor, numbers: np.random.Generator) -> torch.Tensor:
        size = float(row_sums(update[None].double().square()).div(max(1, len(update))).sqrt())
        noise = torch.from_numpy(numbers.standard_normal(len(update), np.float32)).to(update.device)
        return options.scale * size * noise

    return Attack(alone)
