"""Geometric median: the point with the least sum of distances to all updates, by steps of Weiszfeld (Pillutla et al., TSP 2022)."""

import torch
from pydantic import Field

from flora_hpc.algorithms import _rows
from flora_hpc.algorithms._algorithm import Algorithm, CombineRows, Setting

FORMULA = "v = mean; some times: v = sum w_i update_i / sum w_i, w_i = 1 / max(nu, |update_i - v|); adapter + v"
UP, DOWN = _rows.UP, _rows.DOWN
PAPER = "arXiv 1912.13445"


class Options(_rows.NeighbourOptions):
    """The steps."""

    iterations: int = Field(
        100, ge=1, le=10_000, description="steps of Weiszfeld from the mean; the paper takes 3, of which a far attacker needs more"
    )
    nu: float = Field(1e-6, gt=0, allow_inf_nan=False, description="smaller distances count as this one")


def build(options: Options, setting: Setting) -> Algorithm:
    """The paper calls it RFA. Here all clients have the same weight."""

    def mix(squares: torch.Tensor) -> torch.Tensor:
        point = torch.cat([torch.full((len(squares) - 1,), 1 / (len(squares) - 1)), torch.zeros(1)]).double()
        for _ in range(options.iterations):
            weights = 1 / _rows.squares_to(point, squares).sqrt().clamp(min=options.nu)
            weights[-1] = 0.0
            point = weights / weights.sum()
        return point[None, :-1]

    return _rows.build(CombineRows(_rows.only, mix), options)
