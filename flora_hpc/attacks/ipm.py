"""IPM: attackers send a negative multiple of the mean of all honest updates (Xie et al., UAI 2019)."""

import torch
from pydantic import Field

from flora_hpc.attacks._attack import Attack, AttackOptions


class Options(AttackOptions):
    """The factor."""

    scale: float = Field(2.0, gt=0, allow_inf_nan=False, description="length of what is sent, in lengths of the honest mean")


def build(options: Options) -> Attack:
    """Inner product manipulation (arXiv 1903.03936): the attackers know the updates of all honest clients of the round."""

    def against(honest: torch.Tensor, num_attackers: int) -> torch.Tensor:
        return -options.scale * honest.mean(0)

    return Attack(against=against)
