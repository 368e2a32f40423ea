"""The common part of rules that compare all updates of a round: attackers that they withstand, and mixing with neighbours.

Squared distances `squares` are (n + 1, n + 1) float64 between n updates and, in the last row and column, zero.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, CombineRows, Setting
from flora_hpc.clip import steady
from flora_hpc.plugins import BaseOptions

UP, DOWN = "update", "adapter"


class RowsOptions(BaseOptions):
    """What comes before the rule."""

    mix: Literal["none", "nnm"] = Field(
        "none",
        description="nnm: each update is replaced by the mean of its nearest neighbours first (Allouah et al., AISTATS 2023)",
    )


class AttackedOptions(RowsOptions):
    """How many attackers are expected."""

    fraction: float = Field(
        0.2, ge=0, lt=0.5, description="share of a round's clients that may be attackers; rounded down to f clients"
    )


class NeighbourOptions(RowsOptions):
    """How many attackers are expected by the mixing; the rule itself needs no number."""

    fraction: float = Field(
        0.2, ge=0, lt=0.5, description="with mix: nnm, share of a round's clients that are not among the nearest neighbours"
    )


def build(rule: CombineRows, options: AttackedOptions | NeighbourOptions) -> Algorithm:
    """The algorithm with this rule, after mixing where `options` say so."""
    return Algorithm(combine=rule if options.mix == "none" else after_mixing(rule, options.fraction))


def count(fraction: float, num_clients: int, most: int) -> int:
    """f, the attackers among `num_clients`, and at most `most`: where updates were left out, a rule withstands fewer."""
    return max(0, min(int(fraction * num_clients + 1e-9), most))


def needs(setting: Setting, name: str, fraction: float, least: Callable[[int], int], formula: str) -> Callable[[int], str | None]:
    """`CombineRows.fault` of a rule that needs at least `least(f)` clients in a round, in words: `formula`."""

    def fault(num_clients: int) -> str | None:
        f = count(fraction, num_clients, num_clients)
        if num_clients >= least(f):
            return None
        return (
            f"{setting.section}.fraction: {fraction:g} of {num_clients:,} clients in a round are f = {f} attackers, and {name} "
            f"needs {formula} = {least(f)} clients; lower it, or raise cohort.size"
        )

    return fault


def ordered(rows: torch.Tensor) -> torch.Tensor:
    """The numbers of each column of rows (n, width), ascending; NumPy sorts ten times as fast as PyTorch."""
    return torch.from_numpy(np.sort(rows.numpy(), axis=0))


def only(rows: torch.Tensor, num_clients: int) -> torch.Tensor:
    """The only row of rows (1, width)."""
    return rows[0]


def chosen(clients: torch.Tensor, num_clients: int) -> torch.Tensor:
    """The coefficients (m, num_clients) that choose the updates of `clients` (m,)."""
    return torch.eye(num_clients, dtype=torch.float64)[clients]


def nearest_first(squares: torch.Tensor) -> torch.Tensor:
    """For each of n updates, the other ones by distance, (n, n - 1) int64; of equal distances, by the clients' numbers."""
    between = squares[:-1, :-1].clone().fill_diagonal_(-1)  # each is the first of its own neighbours
    return between.argsort(dim=1, stable=True)[:, 1:]


def squares_to(point: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Squared distances (n + 1,) of updates and zero to the point with these coefficients (n + 1,), which add up to 1."""
    products = (squares * point).sum(1)
    return (products - (point * products).sum() / 2).clamp_(min=0)


def neighbours(squares: torch.Tensor, fraction: float) -> torch.Tensor:
    """The coefficients (n, n) that replace each update by the mean of the n - f nearest ones, itself included."""
    num_clients = len(squares) - 1
    near = nearest_first(squares)[:, : num_clients - count(fraction, num_clients, (num_clients - 1) // 2) - 1]
    mask = torch.eye(num_clients, dtype=torch.float64).scatter_(1, near, 1.0)
    return mask / mask.sum(1, keepdim=True)


def after_mixing(rule: CombineRows, fraction: float) -> CombineRows:
    """The rule, applied to the means of nearest neighbours instead of the updates."""

    def mix(squares: torch.Tensor) -> torch.Tensor:
        means = neighbours(squares, fraction)
        return means if rule.mix is None else times(rule.mix(squares_of(means, squares)), means)

    return rule._replace(mix=mix)


def squares_of(mixtures: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Squared distances (m + 1, m + 1) between mixtures (m, n) of updates, whose coefficients add up to 1, and zero."""
    points = torch.zeros(len(mixtures) + 1, len(squares), dtype=torch.float64)
    points[:-1, :-1], points[-1, -1] = mixtures, 1.0
    products = times(times(points, squares), points.T.contiguous())
    own = products.diagonal()
    return (products - (own[:, None] + own) / 2).clamp_(min=0).fill_diagonal_(0)


def times(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The product of two matrices, whatever the number of threads."""
    return steady.multiply(left[None], right[None])[0]
