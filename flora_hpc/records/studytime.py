"""The time left of a study, from the seconds of its finished points."""

import json
from collections.abc import Sequence

import numpy as np

from flora_hpc.records.study import Point


def expected_seconds(points: Sequence[Point]) -> dict[str, float]:
    """The seconds that each point takes: the mean over the finished points that agree with it in most keys, seeds apart.

    Of a stopped point, the seconds that are left. Empty before the first point has finished.
    """
    is_finished = np.array([point.status == "finished" for point in points], bool)
    if not is_finished.any():
        return {}
    keys = dict.fromkeys(key for point in points for key in point.setting)
    codes = np.stack([_codes([point.setting.get(key) for point in points]) for key in keys] or [np.zeros(len(points), int)], 1)
    settings, setting_of = np.unique(codes, axis=0, return_inverse=True)
    setting_of = setting_of.reshape(-1)
    seconds = np.array([point_seconds(point) for point in points])
    sums = np.bincount(setting_of[is_finished], seconds[is_finished], len(settings))
    counts = np.bincount(setting_of[is_finished], minlength=len(settings))
    basis = np.flatnonzero(counts)
    num_equal = sum((settings[:, None, key] == settings[None, basis, key]).astype(int) for key in range(settings.shape[1]))
    nearest = num_equal == np.max(num_equal, axis=1, keepdims=True)
    expected = (nearest @ sums[basis]) / (nearest @ counts[basis])
    return {
        point.name: max(0.0, float(expected[setting]) - (point_seconds(point) if point.status == "stopped" else 0.0))
        for point, setting in zip(points, setting_of, strict=True)
    }


def point_seconds(point: Point) -> float:
    """The seconds that a point took so far."""
    return point.setup_seconds + point.round_seconds


def seconds_left(running: Sequence[float], later: Sequence[float], num_at_a_time: int) -> float | None:
    """Seconds until all points have ended, from the seconds left of those that run and those of the others.

    None where one of them is not known (NaN), or where nothing runs.
    """
    if num_at_a_time == 0 or np.isnan([*running, *later]).any():
        return None
    return max(0.0, *running, (sum(running) + sum(later)) / num_at_a_time)


def _codes(values: Sequence[object]) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """A number for each different value."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(json.dumps(value, sort_keys=True, default=str), len(numbers)) for value in values])
