"""Mean, standard deviation and t-interval of repetitions; differences paired by seed."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flora_hpc.records.study import Point
from flora_hpc.studies.statistics import Setting, paired, settings, spread, t_quantile

scipy_stats = pytest.importorskip("scipy.stats")
scipy_special = pytest.importorskip("scipy.special")
ACCURACIES = st.lists(st.floats(0, 1), min_size=2, max_size=30)
METRIC = "final_test_accuracy"


def point(accuracy: float, status: str = "finished", **keys: Any) -> Point:
    return Point("p", {key.replace("__", "."): value for key, value in keys.items()}, status, final_test_accuracy=accuracy)


def setting(accuracies: Sequence[float], first_seed: int = 0) -> Setting:
    return Setting({}, tuple(point(accuracy, seed=first_seed + i) for i, accuracy in enumerate(accuracies)))


@given(st.integers(1, 3000))
def test_the_t_quantile_is_that_of_scipy(freedom: int) -> None:
    assert t_quantile(freedom) == pytest.approx(scipy_special.stdtrit(freedom, 0.975), rel=1e-9)


@given(st.integers(1, 200), st.floats(0.5, 0.999))
def test_other_shares_too(freedom: int, share: float) -> None:
    assert t_quantile(freedom, share) == pytest.approx(scipy_special.stdtrit(freedom, (1 + share) / 2), rel=1e-9)


def test_quantiles_of_the_textbook() -> None:
    assert [round(t_quantile(freedom), 3) for freedom in (1, 2, 4, 9)] == [12.706, 4.303, 2.776, 2.262]


@given(ACCURACIES)
def test_the_spread_is_that_of_numpy_and_scipy(values: list[float]) -> None:
    result, std = spread(values), np.std(values, ddof=1)
    assert (result.n, result.mean, result.std) == (len(values), pytest.approx(np.mean(values)), pytest.approx(std))
    if std > 1e-100:  # below it scipy divides by zero
        low, high = scipy_stats.t.interval(0.95, len(values) - 1, np.mean(values), std / math.sqrt(len(values)))
        assert (result.low, result.high) == (pytest.approx(low, rel=1e-9, abs=1e-12), pytest.approx(high, rel=1e-9, abs=1e-12))


@given(ACCURACIES, st.integers(0, 5))
def test_values_that_were_not_measured_do_not_count(values: list[float], missing: int) -> None:
    assert spread([*[math.nan] * missing, *values]) == spread(values)


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    one, none = spread([0.5]), spread([math.nan])
    assert (one.n, one.mean, none.n) == (1, 0.5, 0)
    assert all(map(math.isnan, (one.std, one.low, one.high, none.mean, none.std, none.low, none.high)))


def test_equal_values_have_an_interval_of_no_width() -> None:
    result = spread([0.25] * 3)
    assert (result.mean, result.std, result.low, result.high) == (0.25, 0, 0.25, 0.25)


@given(st.dictionaries(st.integers(0, 20), st.floats(0, 1)), st.dictionaries(st.integers(0, 20), st.floats(0, 1)))
def test_pairs_are_the_seeds_that_both_have(left: dict[int, float], right: dict[int, float]) -> None:
    one, other = (Setting({}, tuple(point(value, seed=seed) for seed, value in side.items())) for side in (left, right))
    result = paired(one, other, METRIC)
    differences = [left[seed] - right[seed] for seed in sorted(set(left) & set(right))]
    assert result.n == len(differences)
    if differences:
        assert result.mean == pytest.approx(np.mean(differences), abs=1e-12)
    if len(differences) > 1:
        assert result.std == pytest.approx(np.std(differences, ddof=1), abs=1e-12)


def test_a_difference_that_every_seed_shows_is_certain_though_seeds_differ_much() -> None:
    """The reason for pairs: 0.02 more for each seed, where the seeds themselves differ by 0.4."""
    base = [0.3, 0.5, 0.7]
    result = paired(setting([value + 0.02 for value in base]), setting(base), METRIC)
    assert (result.n, result.mean) == (3, pytest.approx(0.02))
    assert result.low > 0.019
    assert spread(base).high - spread(base).low > 0.5


def test_failed_and_running_points_and_nan_are_in_no_pair() -> None:
    one = Setting({}, (point(0.9, seed=0), point(0.8, "failed", seed=1), point(0.7, seed=2), point(math.nan, seed=3)))
    other = Setting({}, (point(0.5, seed=0), point(0.5, seed=1), point(0.5, "running", seed=2), point(0.5, seed=3)))
    result = paired(one, other, METRIC)
    assert (result.n, result.mean) == (1, pytest.approx(0.4))
    assert one.spread(METRIC).n == 2


def test_points_are_grouped_by_all_keys_but_the_seed_whatever_their_values() -> None:
    values = [None, "null", True, 1, 1.0, "1", ["a", "b"], "a, b", ["a, b"], {"name": "x"}, ""]
    points = [point(0.5, key=value, seed=seed) for seed in range(3) for value in values]
    groups = settings(points)
    assert [(type(group.keys["key"]), group.keys["key"]) for group in groups] == [(type(value), value) for value in values]
    assert all([each.keys["seed"] for each in group.points] == [0, 1, 2] for group in groups)


def test_the_order_of_keys_does_not_part_a_setting() -> None:
    one, other = point(0.5, a=1, b=2, seed=0), point(0.5, b=2, a=1, seed=1)
    assert len(settings([one, other, replace(one, keys={"a": 1})])) == 2
