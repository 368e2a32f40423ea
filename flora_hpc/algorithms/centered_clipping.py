"""Centered clipping: a center moves by the mean of clipped differences to it (Karimireddy et al., ICML 2021)."""

import torch
from pydantic import Field

from flora_hpc.algorithms import _rows
from flora_hpc.algorithms._algorithm import Algorithm, CombineRows, Setting

FORMULA = "v = 0; some times: v = v + mean of (update_i - v) min(1, tau / |update_i - v|); adapter + v"
UP, DOWN = _rows.UP, _rows.DOWN
PAPER = "arXiv 2012.10333"


class Options(_rows.NeighbourOptions):
    """The clipping."""

    tau: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="largest difference; in each step the median of all when not given"
    )
    iterations: int = Field(3, ge=1, le=1000, description="steps of the center, from zero in every round")


def build(options: Options, setting: Setting) -> Algorithm:
    """The paper's center starts where that of the last round ended, since its updates are momenta; here it starts at zero."""

    def mix(squares: torch.Tensor) -> torch.Tensor:
        num_clients = len(squares) - 1
        point = torch.zeros(num_clients + 1, dtype=torch.float64)
        point[-1] = 1.0  # zero itself
        for _ in range(options.iterations):
            distances = _rows.squares_to(point, squares)[:-1].sqrt()
            tau = float(distances.median()) if options.tau is None else options.tau
            shares = torch.where(distances > tau, tau / distances, 1.0) / num_clients
            point *= 1 - shares.sum()
            point[:-1] += shares
        return point[None, :-1]

    return _rows.build(CombineRows(_rows.only, mix), options)
