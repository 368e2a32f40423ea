"""How much clients differ. In Dir(beta, ..., beta) over n, a share has mean 1/n and variance (n - 1) / (n^2 (n beta + 1))."""

import numpy as np
import numpy.typing as npt
import pytest

from flora_hpc.data.partitioners import dirichlet
from flora_hpc.data.shards import Partitioner

Floats = npt.NDArray[np.float64]


def build(beta: float, labels: npt.NDArray[np.int64]) -> Partitioner:
    return dirichlet.build(dirichlet.Options(name="dirichlet", beta=beta), labels)


def variance(beta: float, n: int) -> float:
    return (n - 1) / (n**2 * (n * beta + 1))


def split_shares(beta: float) -> Floats:
    """Shares (400 classes, 10 clients): how much of each class, of 500 examples, each client got."""
    labels = np.repeat(np.arange(400), 500)
    clients = build(beta, labels).split(10, np.random.default_rng(0))
    return np.bincount(labels * 10 + clients, minlength=4000).reshape(400, 10) / 500


def drawn_shares(beta: float) -> Floats:
    """Shares (500 clients, 10 classes): how much of each client's 100 examples is of each class, all classes being as large."""
    labels = np.arange(10_000) % 10
    partitioner = build(beta, labels)
    clients = [partitioner.draw(100, np.random.default_rng(client)) for client in range(500)]
    return np.stack([np.bincount(labels[examples], minlength=10) / 100 for examples in clients])


@pytest.mark.parametrize("beta", [0.1, 1.0, 100.0])
def test_split_deals_out_shares_as_unequal_as_beta_says(beta: float) -> None:
    """At beta 0.1 the squared deviations of one class add up to 0..0.9, 0.45 on average, so their standard deviation is 0.45 at
    most and 400 classes give the mean to 5 %; larger beta varies less. Dealing out whole examples adds less than 1 %."""
    assert np.mean((split_shares(beta) - 0.1) ** 2) == pytest.approx(variance(beta, 10), rel=0.25)


@pytest.mark.parametrize("beta", [0.1, 100.0])
def test_split_favours_no_client(beta: float) -> None:
    """Each client's mean share over 400 classes is 1/10, within five standard errors."""
    error = np.sqrt(variance(beta, 10) / 400)
    np.testing.assert_allclose(split_shares(beta).mean(0), 0.1, atol=5 * error)


def test_split_deals_out_the_examples_of_a_class_at_random() -> None:
    """Not the first ones to the first client."""
    clients = build(100.0, np.zeros(100, np.int64)).split(2, np.random.default_rng(0)).tolist()
    assert clients != sorted(clients)


def test_a_large_beta_is_nearly_iid() -> None:
    """Every client has its tenth of every class, within five standard deviations (0.047)."""
    np.testing.assert_allclose(split_shares(100.0), 0.1, atol=5 * np.sqrt(variance(100.0, 10)))


def test_a_small_beta_gives_most_of_a_class_to_one_client() -> None:
    """At beta 0.001 the second largest share is next to nothing."""
    assert np.median(split_shares(0.001).max(1)) > 0.99


@pytest.mark.parametrize("beta", [0.1, 100.0])
def test_draw_mixes_classes_as_unequally_as_beta_says(beta: float) -> None:
    """On top of the shares' variance v comes that of drawing 100 examples: (E p - E p^2) / 100, with E p^2 = v + 1/100."""
    v = variance(beta, 10)
    expected = v + (0.1 - v - 0.01) / 100
    assert np.mean((drawn_shares(beta) - 0.1) ** 2) == pytest.approx(expected, rel=0.25)


def test_draw_favours_no_class() -> None:
    """500 clients know each class's mean share to sqrt(0.0455 / 500)."""
    np.testing.assert_allclose(drawn_shares(0.1).mean(0), 0.1, atol=5 * np.sqrt(0.0455 / 500))


def test_draw_weighs_classes_by_their_size() -> None:
    """Nine tenths of the examples are of class 0; 200 clients with 50 each know it to sqrt(0.9 x 0.1 / 10,000) = 0.003."""
    labels = np.repeat([0, 1], [900, 100])
    partitioner = build(1000.0, labels)
    shares = [(labels[partitioner.draw(50, np.random.default_rng(client))] == 0).mean() for client in range(200)]
    assert np.mean(shares) == pytest.approx(0.9, abs=0.015)


def test_a_class_that_runs_out_is_made_up_for_by_others() -> None:
    """Whatever the mix, 90 of 100 examples need 40 of each class of 50 at least."""
    labels = np.repeat([0, 1], 50)
    partitioner = build(0.01, labels)
    for client in range(20):
        examples = partitioner.draw(90, np.random.default_rng(client))
        assert np.bincount(labels[examples]).min() >= 40
        assert len(set(examples.tolist())) == 90
