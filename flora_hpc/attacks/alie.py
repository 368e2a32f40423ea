"""ALIE: "a little is enough", the honest mean and as many deviations as a median may hide (Baruch et al., NeurIPS 2019)."""

from math import floor
from statistics import NormalDist

import torch
from pydantic import Field

from flora_hpc.attacks._attack import Attack, AttackOptions


class Options(AttackOptions):
    """The deviations."""

    deviations: float | None = Field(
        None, allow_inf_nan=False, description="z, standard deviations from the honest mean; by the paper's formula when not given"
    )


def build(options: Options) -> Attack:
    """arXiv 1902.06156: the attackers know the updates of all honest clients of the round."""

    def against(honest: torch.Tensor, num_attackers: int) -> torch.Tensor:
        z = hidden(len(honest), num_attackers) if options.deviations is None else options.deviations
        deviation = honest.std(0) if len(honest) > 1 else torch.zeros_like(honest[0])
        return honest.mean(0) + z * deviation

    return Attack(against=against)


def hidden(num_honest: int, num_attackers: int) -> float:
    """The paper's z: so many honest clients lie farther from their mean that, with the attackers, they are a majority."""
    needed = floor((num_honest + num_attackers) / 2 + 1) - num_attackers
    share = (num_honest - needed) / num_honest
    return NormalDist().inv_cdf(min(max(share, 0.5 / num_honest), 1 - 0.5 / num_honest))
