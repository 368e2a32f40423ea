"""Noise between ranks."""

import numpy as np
import pytest

from flora_hpc.bench.predict import noise
from tests.bench.predict.made import sample


def test_the_slowest_of_many() -> None:
    """Of residuals spread evenly from 0 to 1, the largest of P is below x with probability x ** P: its median is 0.5 ** (1 / P)."""
    even = np.linspace(0, 1, 100_001)
    largest = np.median(np.random.default_rng(0).uniform(size=(20_000, 8)).max(1))
    assert noise.slowest_of(even, 8) == pytest.approx(0.5 ** (1 / 8), abs=1e-4)
    assert noise.slowest_of(even, 8) == pytest.approx(largest, abs=0.01)
    assert noise.slowest_of(even, 1) == pytest.approx(0.5, abs=1e-4), "one rank is as usual"
    assert noise.slowest_of(np.array([1.0, 1.3]), 10**6) == pytest.approx(1.3, abs=1e-3), "no more than was seen"


def test_what_slows_all_ranks_at_once_is_no_noise_between_them() -> None:
    common = np.array([[1.0, 2.0], [3.0, 6.0], [1.0, 2.0]])
    np.testing.assert_allclose(noise.between_ranks(common), 1)


def test_the_mean_of_two_ranks_hides_a_part_of_their_spread() -> None:
    rng = np.random.default_rng(0)
    seconds = rng.normal(1, 0.01, (20_000, 2))
    assert noise.between_ranks(seconds).std() == pytest.approx(0.01, rel=0.02)


def test_runs_of_one_rank_serve_where_there_are_no_others() -> None:
    assert len(noise.residuals([sample(noise=0.1), sample(2, noise=0.1, rounds=5)])) == 10, "two ranks in five rounds"
    assert len(noise.residuals([sample(noise=0.1, rounds=7)])) == 7


def test_ranks_with_less_work_are_not_the_slowest() -> None:
    assert noise.num_alike(np.array([1.0, 0.95, 0.5, 0.0])) == 2
