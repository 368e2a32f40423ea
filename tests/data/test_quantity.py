"""Sizes of clients are distributed as Dir(beta, ..., beta) in a split, and as Gamma variables in a population."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flora_hpc.data.holdings import Partitioner, Population
from flora_hpc.data.partitioners import quantity
from flora_hpc.errors import UserError
from tests.data.made_images import made


def build(beta: float, num_examples: int, min_examples: int = 1) -> Partitioner:
    return quantity.build(
        quantity.Options(name="quantity", beta=beta, min_examples=min_examples), made(np.arange(num_examples) % 10)
    )


@pytest.mark.parametrize("beta", [0.1, 1.0, 100.0])
def test_split_gives_sizes_as_unequal_as_beta_says(beta: float) -> None:
    """A share has mean 1/10 and variance 0.09 / (10 beta + 1): squared deviations of 300 splits, within five standard errors.
    Whole examples, and one for everybody, change a share by less than 1/5000: variances by less than 2 x 0.9 / 5000."""
    partitioner = build(beta, 5000)
    shares = np.array([np.bincount(partitioner.split(10, np.random.default_rng(seed)), minlength=10) / 5000 for seed in range(300)])
    expected = 0.09 / (10 * beta + 1)
    squared = ((shares - 0.1) ** 2).mean(1)
    rounding = 2 * np.sqrt(expected) / 5000
    assert squared.mean() == pytest.approx(expected, abs=5 * squared.std(ddof=1) / np.sqrt(300) + rounding)
    np.testing.assert_allclose(shares.mean(0), 0.1, atol=5 * np.sqrt(expected / 300) + 1 / 5000)


def test_split_mixes_classes_alike() -> None:
    """A client with n examples has n/10 of each class, within five standard deviations sqrt(0.09 n)."""
    labels = np.arange(20_000) % 10
    clients = build(5.0, 20_000).split(5, np.random.default_rng(0))
    sizes = np.bincount(clients)
    counts = np.bincount(clients * 10 + labels, minlength=50).reshape(5, 10)
    assert sizes.min() > 100  # otherwise this says little
    assert (np.abs(counts - sizes[:, None] / 10) <= 5 * np.sqrt(0.09 * sizes[:, None])).all()


@settings(deadline=None, max_examples=60)
@given(
    num_examples=st.integers(4, 100),
    beta=st.sampled_from([1e-6, 0.01, 1.0, 1e6]),
    least=st.integers(1, 4),
    num_clients=st.integers(1, 20),
    seed=st.integers(0, 2**32),
)
def test_every_client_gets_the_least(num_examples: int, beta: float, least: int, num_clients: int, seed: int) -> None:
    num_clients = min(num_clients, num_examples // least)
    sizes = np.bincount(build(beta, num_examples, least).split(num_clients, np.random.default_rng(seed)), minlength=num_clients)
    assert len(sizes) == num_clients
    assert sizes.sum() == num_examples
    assert sizes.min() >= least


def test_a_minimum_that_cannot_be_reached() -> None:
    with pytest.raises(UserError, match=r"^partition\.min_examples: 3 clients .* lower partition\.num_clients to 2 at most$"):
        build(1.0, 10, min_examples=4).split(3, np.random.default_rng(0))


@pytest.mark.parametrize("beta", [0.5, 100.0])
def test_sizes_of_a_population_are_as_unequal_as_beta_says(beta: float) -> None:
    """Mean 1000 and variance 1000^2 / beta, of 2000 clients within five standard errors. The limits of 1 and 100,000 examples are
    met by a Gamma(0.5) variable below 0.0005 (2 %, by less than one example) and above 50 (never)."""
    size = build(beta, 100_000).size
    assert size is not None
    sizes = size(1000, np.random.default_rng(0).random(2000)).astype(float)
    squared = (sizes - 1000) ** 2
    assert sizes.mean() == pytest.approx(1000, abs=5 * np.sqrt(1000**2 / beta / 2000) + 1)
    assert squared.mean() == pytest.approx(1000**2 / beta, abs=5 * squared.std(ddof=1) / np.sqrt(2000))


def test_sizes_of_a_population_stay_within_the_least_and_all() -> None:
    """At beta 0.01 most clients have nearly no examples, and some would have more than exist."""
    size = build(0.01, 50, min_examples=3).size
    assert size is not None
    sizes = size(20, np.random.default_rng(0).random(500))
    assert (sizes.min(), sizes.max()) == (3, 50)
    assert (sizes == 3).sum() > 250


def test_sizes_of_a_population_are_those_of_an_exponential_distribution_at_beta_one() -> None:
    """Gamma(1) is exponential: n is at most k where g m <= k + 1/2, so for a random number u it is -m log(1 - u), rounded."""
    size, uniforms = build(1.0, 10_000).size, np.array([0.001, 0.25, 0.5, 0.9, 0.999])
    assert size is not None
    assert size(100, uniforms).tolist() == [1, *np.round(-100 * np.log1p(-uniforms[1:])).astype(int).tolist()]


def test_a_client_of_a_population_draws_as_many_as_it_says() -> None:
    population = Population(1000, 20, 0, build(0.5, 400), np.arange(400) + 1000)
    clients = np.arange(50)
    sizes = population.sizes(clients)
    assert sizes.tolist() == [len(population.examples(client)) for client in range(50)]
    assert population.sizes(clients[::-1]).tolist() == sizes[::-1].tolist()
    assert sizes.dtype == np.int64


def test_a_guide_finds_the_places_that_a_search_by_halves_finds() -> None:
    rng = np.random.default_rng(0)
    numbers = np.sort(np.concatenate([rng.random(3000), np.array([0.0, 0.25, 0.25, 0.5, 1.0])]))  # some on edges of cells
    uniforms = np.concatenate([rng.random(20_000), numbers[:-1], np.array([0.0, 0.25, 0.5, np.nextafter(1, 0)])])
    places = quantity.Table.of(numbers).places(uniforms)
    np.testing.assert_array_equal(places, np.searchsorted(numbers, uniforms, "right"))
    assert quantity.Table.of(np.zeros(0)).places(np.array([0.5])).tolist() == [0]
