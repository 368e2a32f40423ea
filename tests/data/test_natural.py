"""Clients are the values of a column."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flora_hpc.data.holdings import Partitioner
from flora_hpc.data.partitioners import natural
from flora_hpc.data.partitioners._groups import group
from flora_hpc.errors import UserError
from tests.data.made_images import made


def build(values: npt.ArrayLike) -> Partitioner:
    images = made(np.zeros(len(np.asarray(values))), writer=values)
    return natural.build(natural.Options(name="natural", column="writer"), images)


def split(values: npt.ArrayLike, num_clients: int, seed: int = 0) -> list[int]:
    return build(values).split(num_clients, np.random.default_rng(seed)).tolist()


def test_as_many_clients_as_values_are_the_values_in_order() -> None:
    assert split(["b", "a", "c", "a"], 3) == [1, 0, 2, 0]
    assert split([30, 10, 20, 10], 3) == [2, 0, 1, 0]


def test_values_of_any_kind_are_clients_in_the_order_in_which_they_appear() -> None:
    assert split(np.array(["b", None, "b", 7], object), 3) == [0, 1, 0, 2]


def test_fewer_clients_get_whole_values_the_largest_first() -> None:
    """Of 6, 5, 4, 3 and 2 examples, the first client gets 6, the second 5 and then 4, the first 3 (9 : 9) and one of them 2."""
    values = np.repeat([0, 1, 2, 3, 4], [6, 5, 4, 3, 2])
    owners = [split(values, 2)[place] for place in (0, 6, 11, 15, 18)]
    assert owners in ([0, 1, 1, 0, 0], [0, 1, 1, 0, 1])


def test_values_of_one_size_are_dealt_at_random() -> None:
    """Four values form one of three pairings; seeds reach all of them."""
    assert {tuple(split([0, 1, 2, 3], 2, seed)) for seed in range(50)} == {(0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 0)}


@settings(deadline=None, max_examples=60)
@given(values=st.lists(st.integers(0, 12), min_size=1, max_size=80), num_clients=st.integers(1, 13), seed=st.integers(0, 2**32))
def test_values_stay_whole_and_clients_balanced(values: list[int], num_clients: int, seed: int) -> None:
    """Without its smallest value, the largest client has no more than the smallest client."""
    num_clients = min(num_clients, len(set(values)))
    clients = np.array(split(values, num_clients, seed))
    loads = np.bincount(clients)
    assert len(loads) == num_clients
    assert loads.min() >= 1
    of_value = {value: set(clients[np.array(values) == value].tolist()) for value in set(values)}
    assert all(len(owners) == 1 for owners in of_value.values())
    largest = int(loads.argmax())
    smallest_value = min(values.count(value) for value, owners in of_value.items() if owners == {largest})
    assert loads[largest] - smallest_value <= loads.min()


def test_more_clients_than_values() -> None:
    with pytest.raises(UserError) as caught:
        split(["a", "b", "a"], 3)
    assert str(caught.value) == (
        "partition.num_clients: 3 clients, but column 'writer' of the training images has 2 values; lower it to 2 at most"
    )


def test_a_column_that_is_not_there() -> None:
    options = natural.Options(name="natural", column="writr")
    with pytest.raises(UserError, match=r"partition\.column: the data has no column 'writr'; did you mean 'writer'\?"):
        natural.build(options, made([0], writer=[0]))


# --- a population


def test_a_client_draws_from_one_value_weighted_by_size() -> None:
    """Values of 300 and 100 examples: 400 clients take the first in 300 +- sqrt(400 x 3/4 x 1/4)."""
    values = np.repeat([0, 1], [300, 100])
    partitioner = build(values)
    drawn = np.array([values[partitioner.draw(20, np.random.default_rng(client))] for client in range(400)])
    assert (drawn == drawn[:, :1]).all()
    assert abs((drawn[:, 0] == 0).sum() - 300) <= 5 * np.sqrt(75)


def test_a_client_goes_on_to_another_value_when_one_has_too_few() -> None:
    """12 examples of values of 5 each: two whole values and two examples of a third."""
    values = np.repeat(np.arange(6), 5)
    partitioner = build(values)
    for client in range(20):
        counts = np.bincount(values[partitioner.draw(12, np.random.default_rng(client))], minlength=6)
        assert sorted(counts.tolist()) == [0, 0, 0, 2, 5, 5]


def test_further_values_are_weighted_by_size_too() -> None:
    """Two examples of values of 1, 1 and 8, where the first may turn up again. The large one comes alone or not at all first: with
    one of the others first (2 of 10), the large one comes next with 8 of 9 and gives one. So 2 x 1/10 x 8/9 = 8/45 of the clients
    have one of the large value, 8/10 have two, and 1/45 none; of 2000, 356 +- 17, 1600 +- 18 and 44 +- 7."""
    values = np.repeat([0, 1, 2], [1, 1, 8])
    partitioner = build(values)
    drawn = [int((values[partitioner.draw(2, np.random.default_rng(client))] == 2).sum()) for client in range(2000)]
    counts = np.bincount(drawn, minlength=3)
    expected = 2000 * np.array([1 / 45, 8 / 45, 8 / 10])
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected * (1 - expected / 2000))).all()


def test_values_that_random_examples_do_not_find_are_weighted_too() -> None:
    """The first value alone turns up, and has too few: the one of 8 is next before that of 1 in 8/9 of 400 cases, 356 +- 6.3."""
    values, clocks = group(np.repeat([0, 1, 2], [1, 1, 8])), np.random.default_rng(0)
    stuck: Any = SimpleNamespace(integers=lambda high, size: np.zeros(size, np.int64), exponential=clocks.exponential)
    orders = [tuple(natural._weighted(values, 2, stuck).tolist()) for _ in range(400)]
    assert set(orders) == {(0, 2, 1), (0, 1, 2)}
    assert abs(orders.count((0, 2, 1)) - 400 * 8 / 9) <= 5 * np.sqrt(400 * 8 / 81)


def test_values_of_a_column_that_are_missing() -> None:
    options = natural.Options(name="natural", num_clients=2, column="writer")
    for values in (
        np.array([1.0, np.nan, 2.0, np.nan]),
        np.array(["a", "", "b", " "], object),
        np.array(["a", "nan", "NULL", "x"], object),
        np.array(["a", "b", "None", "NaN"]),
        np.array([1, float("nan"), "nan", 2], object),
    ):
        with pytest.raises(UserError, match=r"partition\.column: 'writer' has no value \(NaN, a blank, .*\) for 2 of 4 images"):
            natural.build(options, made([0, 1, 0, 1], writer=values))
    natural.build(options, made([0, 1], writer=np.array(["nancy", "no one"], object)))
