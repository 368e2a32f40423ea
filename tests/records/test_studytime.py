"""How long the rest of a study takes, on points whose seconds are known."""

import math

import pytest

from flora_hpc.records.study import Point
from flora_hpc.records.studytime import expected_seconds, seconds_left


def point(method: str, clients: int, seed: int, seconds: float | None = None) -> Point:
    keys = {"method.name": method, "partition.num_clients": clients, "seed": seed}
    name = f"{method}-{clients}-{seed}"
    if seconds is None:
        return Point(name, keys)
    return Point(name, keys, "finished", setup_seconds=1.0, round_seconds=seconds - 1.0)


def test_a_repetition_takes_as_long_as_its_setting() -> None:
    points = [point("flora", 10, 0, 2.0), point("flora", 10, 1, 4.0), point("flora", 100, 0, 30.0), point("flora", 10, 2)]
    assert expected_seconds(points)["flora-10-2"] == 3.0


def test_a_new_setting_takes_as_long_as_those_that_agree_in_most_keys() -> None:
    points = [point("flora", 10, 0, 2.0), point("fedlc", 10, 0, 6.0), point("flora", 100, 0, 30.0), point("fedlc", 100, 0)]
    points += [point("zeroshot", 1000, 0)]
    expected = expected_seconds(points)
    assert expected["fedlc-100-0"] == 18.0, "the mean of fedlc with 10 clients and flora with 100, not flora with 10"
    assert expected["zeroshot-1000-0"] == pytest.approx(38 / 3), "it agrees with none, so the mean of all"


def test_a_stopped_point_takes_what_is_left() -> None:
    stopped = Point("stopped", {"method.name": "flora", "seed": 1}, "stopped", setup_seconds=1.0, round_seconds=2.0)
    late = Point("late", {"method.name": "flora", "seed": 2}, "stopped", round_seconds=90.0)
    finished = Point("finished", {"method.name": "flora", "seed": 0}, "finished", setup_seconds=1.0, round_seconds=9.0)
    assert expected_seconds([stopped, late, finished]) == {"stopped": 7.0, "late": 0.0, "finished": 10.0}


def test_nothing_is_expected_before_a_point_has_finished() -> None:
    assert expected_seconds([point("flora", 10, 0)]) == {}
    assert expected_seconds([]) == {}


def test_points_without_keys_and_lists_as_values() -> None:
    assert expected_seconds([Point("a", {"seed": 0}, "finished", round_seconds=2.0), Point("b", {"seed": 1})])["b"] == 2.0
    lists = [Point("a", {"targets": ["q"]}, "finished", round_seconds=2.0), Point("b", {"targets": ["q"], "lr": 1})]
    assert expected_seconds(lists)["b"] == 2.0


@pytest.mark.parametrize(
    ("running", "later", "at_a_time", "left"),
    [
        ([4.0, 2.0], [3.0, 3.0], 2, 6.0),  # 12 seconds of work for two
        ([10.0, 1.0], [1.0], 2, 10.0),  # nothing shortens the point that runs
        ([5.0], [], 4, 5.0),
        ([], [8.0, 8.0], 2, 8.0),  # between two points
        ([math.nan], [1.0], 1, None),
        ([1.0], [math.nan], 1, None),
        ([], [1.0], 0, None),
        ([], [], 1, 0.0),
    ],
)
def test_seconds_left(running: list[float], later: list[float], at_a_time: int, left: float | None) -> None:
    assert seconds_left(running, later, at_a_time) == left
