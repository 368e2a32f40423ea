"""The common part of Krum, Multi-Krum and Bulyan: a score for each update, and how many clients they need."""

from collections.abc import Callable

import torch

from flora_hpc.algorithms import _rows
from flora_hpc.algorithms._algorithm import Setting


def scores(squares: torch.Tensor, fraction: float) -> torch.Tensor:
    """The sum of squared distances of each update to its n - f - 2 nearest ones, (n,) float64."""
    num_clients = len(squares) - 1
    f = _rows.count(fraction, num_clients, (num_clients - 3) // 2)
    nearest = squares[:-1, :-1].gather(1, _rows.nearest_first(squares))
    return nearest[:, : max(1, num_clients - f - 2)].sum(1)


def fault(setting: Setting, name: str, fraction: float) -> Callable[[int], str | None]:
    """What is wrong with too few clients."""
    return _rows.needs(setting, name, fraction, lambda f: 2 * f + 3, "2 f + 3")
