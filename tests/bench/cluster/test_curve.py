import numpy as np
import pytest

from flora_hpc.bench.cluster import curve
from tests.bench.cluster.known import one_node, played, units_of


def test_updates_a_second_and_efficiency() -> None:
    """12 clients: in 4 s on one rank (of 3, 5, 4, 4), in 3 s on two."""
    plays = {1: [played([0], seconds=(3, 5)), played([1], seconds=(4, 4))], 2: [played([0, 1], seconds=(3, 3))]}
    one, two = curve.curve(plays, one_node(2))
    assert (one["client_updates_per_second"]["value"], one["efficiency"]) == (3.0, {"value": 1.0, "low": 1.0, "high": 1.0})
    assert (one["parts"], two["parts"], two["ranks"], two["clients"]) == (2, 1, 2, 12)
    assert (two["client_updates_per_second"]["value"], two["speedup"]) == (4.0, 4 / 3)
    assert two["efficiency"]["value"] == pytest.approx(2 / 3)
    assert 12 / 5 <= one["client_updates_per_second"]["low"] <= 3 <= one["client_updates_per_second"]["high"] <= 12 / 3
    assert 3 / 6 <= two["efficiency"]["low"] <= two["efficiency"]["high"] <= 5 / 6
    assert two["repeat_round_seconds"] == [[3, 3]]


def test_the_slowest_part_is_named() -> None:
    plays = {1: [played([0], seconds=(2, 2)), played([1], seconds=(6, 6)), played([2], seconds=(2, 2))]}
    (row,) = curve.curve(plays, units_of("n0", "n1", "n2"))
    assert (row["slowest_part"], row["slowest_over_median"]) == (["n1"], 3.0)


def test_intervals_hold_the_median_of_another_sample_in_most_cases() -> None:
    """Of a hundred samples of 20, at least 85 intervals hold the true median."""
    rng = np.random.default_rng(0)
    hits = 0
    for number in range(100):
        low, high = np.quantile(curve.medians(rng.normal(10, 1, 20).tolist(), f"{number}"), [curve.LOW, curve.HIGH])
        hits += low <= 10 <= high
    assert 85 <= hits <= 100


def test_phases_and_the_rest() -> None:
    phases = curve.phases(played([0]))
    assert phases["train"] == {"median": 1.5, "low": 1.25, "high": 1.75, "share": 0.5}
    assert (phases["rest"]["share"], phases["wait"]["share"]) == (0.5, 0.0)


def test_the_slowest_rank_and_node() -> None:
    part = played([0, 1, 2, 3], work_seconds=[1.0, 1.0, 2.0, 4.0])
    slow = curve.slow(part, units_of("n0", "n0", "n1", "n1"))
    assert slow["rank"] == {"name": "rank 3 on n1", "over_median": 4 / 1.5}
    assert slow["node"] == {"name": "n1", "over_median": 3.0 / 2.0}
    assert slow["node_work_seconds"] == {"n0": 1.0, "n1": 3.0}


def test_ranks_without_clients_are_not_the_measure_of_the_slowest() -> None:
    part = played([0, 1, 2, 3, 4], work_seconds=[0.0, 0.0, 0.0, 1.0, 3.0])
    slow = curve.slow(part, units_of("n0", "n0", "n1", "n1", "n2"))
    assert slow["rank"] == {"name": "rank 4 on n2", "over_median": 3.0 / 2.0}
    assert slow["node"] == {"name": "n2", "over_median": 3.0 / 2.0}
    assert slow["node_work_seconds"] == {"n0": 0.0, "n1": 1.0, "n2": 3.0}
    idle = curve.slow(played([0], work_seconds=[0.0]), units_of("n0"))
    assert idle == {"rank": None, "node": None, "node_work_seconds": {"n0": 0.0}}
