"""Repetitions of a setting as numbers: mean, standard deviation and 95 % t-interval; differences paired by seed."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from flora_hpc.records.study import Point

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """What n values say. `std` and the interval `low` to `high` are NaN for fewer than two values.

    The interval is that of Student's t: mean ± t * std / sqrt(n), which has the true mean inside in 95 of 100 studies, as far as
    the values of different seeds are normally distributed.
    """

    n: int
    mean: float
    std: float  # of a sample: divided by n - 1
    low: float
    high: float


def spread(values: Sequence[float] | Floats) -> Spread:
    """Mean, standard deviation and 95 % interval of the values that are not NaN."""
    numbers = np.asarray(values, np.float64)
    numbers = numbers[~np.isnan(numbers)]
    n = len(numbers)
    mean = float(numbers.mean()) if n else math.nan
    if n < 2:
        return Spread(n, mean, math.nan, math.nan, math.nan)
    std = float(numbers.std(ddof=1))
    half = t_quantile(n - 1) * std / math.sqrt(n)
    return Spread(n, mean, std, mean - half, mean + half)


@cache
def t_quantile(freedom: int, share: float = 0.95) -> float:
    """The t for which Student's distribution with `freedom` degrees has `share` of its weight between -t and t.

    Bisection on the weight inside, which is an integral over the angle arctan(t / sqrt(freedom)) of a power of its cosine.
    """
    angles, weights = np.polynomial.legendre.leggauss(200)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    low, high = 0.0, math.pi / 2
    while high - low > 1e-15:
        middle = (low + high) / 2
        inside = 2 * scale * middle / 2 * float(weights @ np.cos(middle * (angles + 1) / 2) ** (freedom - 1))
        low, high = (low, middle) if inside > share else (middle, high)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


@dataclass(frozen=True)
class Setting:
    """Points that differ in their seed alone."""

    keys: dict[str, Any]  # without the seed
    points: tuple[Point, ...]

    def values(self, column: str) -> Floats:
        """A column of the finished points."""
        return np.array([getattr(point, column) for point in self.points if point.status == "finished"], np.float64)

    def spread(self, column: str) -> Spread:
        """The spread of a column over the finished points."""
        return spread(self.values(column))

    def by_seed(self, column: str) -> dict[Any, float]:
        """A column of the finished points by seed."""
        return {point.keys.get("seed"): float(getattr(point, column)) for point in self.points if point.status == "finished"}


def settings(points: Sequence[Point]) -> list[Setting]:
    """The points grouped by everything but the seed, in the order of their first appearance."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(json.dumps(point.setting, sort_keys=True), []).append(point)
    return [Setting(group[0].setting, tuple(group)) for group in groups.values()]


def paired(one: Setting, other: Setting, column: str) -> Spread:
    """The spread of the differences `one` - `other` between points of equal seed. Seeds that one of them lacks do not count."""
    left, right = one.by_seed(column), other.by_seed(column)
    return spread([left[seed] - right[seed] for seed in left if seed in right])
