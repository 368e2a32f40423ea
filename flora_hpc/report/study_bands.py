"""Curves of repetitions: at each round, the mean over the seeds and its 95 % t-interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flora_hpc.records.schema import Rows
from flora_hpc.report.columns import column
from flora_hpc.report.style import thinned
from flora_hpc.studies.statistics import t_quantile

Floats = npt.NDArray[np.float64]
COSTS = ("round", "bytes", "seconds", "train_seconds")  # what a curve is drawn against; sums from round 0 but for `round`
VALUES = ("test_accuracy", "train_loss", "personal_accuracy_mean")  # columns of /rounds that have curves


@dataclass(frozen=True)
class Band:
    """One value of a setting by round: mean and interval over the seeds that measured it there."""

    x: dict[str, Floats]  # cost -> its mean over the same seeds
    n: npt.NDArray[np.int64]  # seeds
    mean: Floats
    low: Floats  # NaN for one seed, as `high`
    high: Floats


def band(tables: Sequence[Rows], value: str, most: int) -> Band | None:
    """The band of a column of /rounds over runs, thinned to `most` rounds. None where no run measured it."""
    measured = [_measured(rows, value) for rows in tables]
    rounds = np.unique(np.concatenate([columns["round"] for columns in measured])) if measured else np.zeros(0)
    if not len(rounds):
        return None
    means = {}
    for name in (*COSTS, value):
        matrix = np.full((len(measured), len(rounds)), np.nan)  # (seeds, rounds)
        for row, columns in zip(matrix, measured, strict=True):
            row[np.searchsorted(rounds, columns["round"])] = columns[name]
        means[name] = np.nanmean(matrix, axis=0)
    low, high, n = _interval(matrix, means[value])
    if len(rounds) <= max(most, 3):
        return Band({name: means[name] for name in COSTS}, n, means[value], low, high)
    thin = [thinned(means["round"], values, most)[1] for values in (*(means[name] for name in COSTS), means[value], low, high)]
    return Band(dict(zip(COSTS, thin[:4], strict=True)), n[np.linspace(0, len(n) - 1, len(thin[0])).astype(int)], *thin[4:])


def _measured(rows: Rows, value: str) -> dict[str, Floats]:
    """The rounds of a run in which `value` was measured: its values and the costs at their ends."""
    values = rows[value].astype(float) if value in (rows.dtype.names or ()) else np.full(len(rows), np.nan)
    columns: dict[str, Any] = {
        "round": rows["round"].astype(float),
        "bytes": np.cumsum(column(rows, "uplink_bytes") + column(rows, "downlink_bytes")),
        "seconds": np.cumsum(column(rows, "round_seconds")),
        "train_seconds": np.cumsum(column(rows, "train_seconds")),
        value: values,
    }
    return {name: numbers[~np.isnan(values)] for name, numbers in columns.items()}


def _interval(matrix: Floats, mean: Floats) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Ends of the 95 % t-interval of each column, as `statistics.spread` computes it, and the number of values."""
    n = (~np.isnan(matrix)).sum(0)
    squares = np.nansum((matrix - mean) ** 2, axis=0)
    half = np.full(len(mean), np.nan)
    for count in np.unique(n[n > 1]):
        here = n == count
        half[here] = t_quantile(int(count) - 1) * np.sqrt(squares[here] / (count - 1) / count)
    return mean - half, mean + half, n


def clipped(band: Band, room: float = 0.75, least: float = 0.02) -> tuple[Floats, Floats]:
    """The interval's ends no further from the curve's range than `room` of it: what an axis is fitted to."""
    low, high = float(np.min(band.mean)), float(np.max(band.mean))
    margin = max(least, room * (high - low))
    return np.clip(band.low, low - margin, None), np.clip(band.high, None, high + margin)


def ratio(values: Sequence[float]) -> float:
    """The largest over the smallest; infinite where one is not above zero, 1 for none."""
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers:
        return 1.0
    return max(numbers) / min(numbers) if min(numbers) > 0 else math.inf
