from functools import partial

import numpy as np

from flora_hpc.data.images import Ints
from flora_hpc.records.sampled import chosen


def tripled(places: Ints) -> Ints:
    return 3 * places


def test_a_sample_has_as_many_clients_each_once() -> None:
    clients = chosen(0, 1, 10, 100, tripled)
    assert len(set(clients.tolist())) == 10
    assert set(clients.tolist()) < set(range(0, 300, 3))


def test_none_and_more_than_there_are() -> None:
    assert len(chosen(0, 1, 0, 5, tripled)) == 0
    assert sorted(chosen(0, 1, 6, 5, tripled).tolist()) == [0, 3, 6, 9, 12]


def test_the_sample_depends_on_seed_and_round() -> None:
    sample = partial(chosen, most=20, num_clients=200, find=tripled)
    first = set(sample(0, 1).tolist())
    assert set(sample(0, 1).tolist()) == first
    assert set(sample(0, 2).tolist()) != first
    assert set(sample(1, 1).tolist()) != first


def test_every_client_is_drawn_equally_often() -> None:
    """A fifth of 50 clients in 500 rounds: 100 times each, within five times sqrt(500 x 1/5 x 4/5) = 8.9."""
    counts = np.bincount(np.concatenate([chosen(0, number, 10, 50, tripled) for number in range(500)]) // 3, minlength=50)
    np.testing.assert_allclose(counts, 100, atol=44)
