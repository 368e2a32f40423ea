"""Class mixes by a Dirichlet distribution. A share of n has mean 1/n and variance (1/n) (1 - 1/n) / (n beta + 1)."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flora_hpc.data.holdings import Partitioner
from flora_hpc.data.partitioners import dirichlet
from flora_hpc.data.partitioners._counts import cut, deal, raised
from flora_hpc.errors import UserError
from tests.data.made_images import made

Floats = npt.NDArray[np.float64]


def build(beta: float, labels: npt.ArrayLike, min_examples: int = 1) -> Partitioner:
    return dirichlet.build(dirichlet.Options(name="dirichlet", beta=beta, min_examples=min_examples), made(labels))


def variance(beta: float, n: int) -> float:
    return (1 / n) * (1 - 1 / n) / (n * beta + 1)


def standard_error(samples: Floats) -> float:
    """Standard error of the mean of independent samples (num_samples,)."""
    return float(samples.std(ddof=1) / np.sqrt(len(samples)))


def split_shares(beta: float) -> Floats:
    """Shares (400 classes, 10 clients) of the 500 examples of each class."""
    labels = np.repeat(np.arange(400), 500)
    clients = build(beta, labels).split(10, np.random.default_rng(0))
    return np.bincount(labels * 10 + clients, minlength=4000).reshape(400, 10) / 500


def drawn_shares(beta: float) -> Floats:
    """Shares (500 clients, 10 classes) of classes in a client's 100 examples; all classes have the same size."""
    labels = np.arange(10_000) % 10
    partitioner = build(beta, labels)
    clients = [partitioner.draw(100, np.random.default_rng(client)) for client in range(500)]
    return np.stack([np.bincount(labels[examples], minlength=10) / 100 for examples in clients])


@pytest.mark.parametrize("beta", [0.1, 1.0, 100.0])
def test_split_deals_out_shares_as_unequal_as_beta_says(beta: float) -> None:
    """The squared deviations of 400 independent classes, within five standard errors. Rounding to one of 500 examples adds a
    variance of 1/4 x 1/500^2 to a share at most, a hundredth of that at beta 100."""
    squared = ((split_shares(beta) - 0.1) ** 2).mean(1)
    assert squared.mean() == pytest.approx(variance(beta, 10), abs=5 * standard_error(squared) + 1e-6)


@pytest.mark.parametrize("beta", [0.1, 100.0])
def test_split_favours_no_client(beta: float) -> None:
    """Each client's mean share over 400 classes is 1/10, within five standard errors."""
    error = np.sqrt(variance(beta, 10) / 400)
    np.testing.assert_allclose(split_shares(beta).mean(0), 0.1, atol=5 * error)


def test_split_deals_out_the_examples_of_a_class_at_random() -> None:
    """The first examples do not all go to the first client."""
    clients = build(100.0, np.zeros(100)).split(2, np.random.default_rng(0)).tolist()
    assert clients != sorted(clients)


def test_a_large_beta_is_nearly_iid() -> None:
    """Every client has a tenth of every class, within five standard deviations (0.047)."""
    np.testing.assert_allclose(split_shares(100.0), 0.1, atol=5 * np.sqrt(variance(100.0, 10)))


def test_a_small_beta_gives_most_of_a_class_to_one_client() -> None:
    """At beta 0.001 the second largest share is nearly 0."""
    assert np.median(split_shares(0.001).max(1)) > 0.99


# --- the least that a client gets


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.sampled_from([0, 2, 4]), min_size=12, max_size=80),
    beta=st.sampled_from([1e-6, 0.01, 1.0, 1e6]),
    least=st.integers(1, 4),
    num_clients=st.integers(1, 20),
    seed=st.integers(0, 2**32),
)
def test_every_client_gets_the_least(labels: list[int], beta: float, least: int, num_clients: int, seed: int) -> None:
    num_clients = min(num_clients, len(labels) // least)
    clients = build(beta, labels, least).split(num_clients, np.random.default_rng(seed))
    sizes = np.bincount(clients, minlength=num_clients)
    assert len(sizes) == num_clients
    assert sizes.sum() == len(labels)
    assert sizes.min() >= least


def test_what_is_missing_comes_from_the_largest_alone() -> None:
    """Ten clients, 1000 examples, with and without a minimum of 30: a client with 30 keeps all, or is cut to the common level."""
    labels = np.zeros(1000)
    before, after = (np.bincount(build(0.3, labels, least).split(10, np.random.default_rng(2)), minlength=10) for least in (1, 30))
    assert before.min() < 30  # otherwise this tests nothing
    changed = after != before
    lowered = after < before
    np.testing.assert_array_equal(after[before < 30], 30)
    assert np.ptp(after[lowered]) <= 1
    assert after[lowered].min() >= after[~changed].max() - 1


def test_a_minimum_that_cannot_be_reached() -> None:
    with pytest.raises(UserError) as caught:
        build(1.0, np.zeros(10), min_examples=4).split(3, np.random.default_rng(0))
    assert str(caught.value) == (
        "partition.min_examples: 3 clients with 4 examples or more need 12, but there are 10; "
        "lower it, or lower partition.num_clients to 2 at most"
    )


# --- a population


@pytest.mark.parametrize("beta", [0.1, 100.0])
def test_draw_mixes_classes_as_unequally_as_beta_says(beta: float) -> None:
    """The variance v of the shares, plus the variance of drawing 100 examples: (E p - E p^2) / 100, with E p^2 = v + 1/100."""
    v = variance(beta, 10)
    squared = ((drawn_shares(beta) - 0.1) ** 2).mean(1)
    assert squared.mean() == pytest.approx(v + (0.1 - v - 0.01) / 100, abs=5 * standard_error(squared))


def test_draw_favours_no_class() -> None:
    """The mean share of a class over 500 clients has the standard error sqrt(0.0455 / 500)."""
    np.testing.assert_allclose(drawn_shares(0.1).mean(0), 0.1, atol=5 * np.sqrt(0.0455 / 500))


@pytest.mark.parametrize("beta", [0.1, 1000.0])
def test_draw_weighs_classes_by_their_size(beta: float) -> None:
    """Nine tenths of the examples are of class 0. A share of it has variance 0.09 / (2 beta + 1), and drawing 50 adds 0.09 / 50 at
    most; 400 clients know the mean to the root of a 400th of both. Label 1 is of nobody."""
    labels = np.repeat([0, 2], [9000, 1000])
    partitioner = build(beta, labels)
    shares = [(labels[partitioner.draw(50, np.random.default_rng(client))] == 0).mean() for client in range(400)]
    assert np.mean(shares) == pytest.approx(0.9, abs=5 * np.sqrt((0.09 / (2 * beta + 1) + 0.09 / 50) / 400))


def test_a_class_that_runs_out_is_made_up_for_by_others() -> None:
    """With two classes of 50, any 90 of 100 examples contain at least 40 of each class."""
    labels = np.repeat([0, 1], 50)
    partitioner = build(0.01, labels)
    for client in range(20):
        examples = partitioner.draw(90, np.random.default_rng(client))
        assert np.bincount(labels[examples]).min() >= 40
        assert len(set(examples.tolist())) == 90


# --- the arithmetic


@pytest.mark.parametrize(
    ("counts", "total", "sorted_result"),
    [
        ([3, 9, 9], 12, [3, 4, 5]),
        ([9, 3, 9], 13, [3, 5, 5]),
        ([5, 1], 6, [1, 5]),  # as they are
        ([5, 1], 100, [1, 5]),
        ([7], 4, [4]),
        ([2, 2, 2], 2, [0, 1, 1]),
        ([0, 0, 10], 1, [0, 0, 1]),
        ([4, 4], 0, [0, 0]),
    ],
)
def test_cut(counts: list[int], total: int, sorted_result: list[int]) -> None:
    result = cut(np.array(counts), total, np.random.default_rng(0))
    assert sorted(result.tolist()) == sorted_result
    assert (result <= counts).all()


def test_cut_gives_what_is_left_over_at_random() -> None:
    """(3, 9, 9) to 12 is (3, 5, 4) or (3, 4, 5), each in half of 400 cases: within five times sqrt(400 / 4)."""
    first = [cut(np.array([3, 9, 9]), 12, np.random.default_rng(seed))[1] == 5 for seed in range(400)]
    assert abs(sum(first) - 200) <= 50


def test_raised() -> None:
    """The second lacks two, which come from the first."""
    assert raised(np.array([9, 0, 3]), 2, np.random.default_rng(0)).tolist() == [7, 2, 3]


def test_deal_rounds_down_or_up() -> None:
    """Of 10 items, shares of 0.25, 0 and 0.75 are 2 or 3, 0, and 8 or 7; each in half of 400 cases."""
    dealt = [deal(np.array([0.25, 0.0, 0.75]), 10, np.random.default_rng(seed)) for seed in range(400)]
    counts = np.array([np.bincount(owners, minlength=3) for owners in dealt])
    assert set(map(tuple, counts.tolist())) == {(2, 0, 8), (3, 0, 7)}
    assert abs((counts[:, 0] == 2).sum() - 200) <= 50
    assert all((np.diff(owners) >= 0).all() for owners in dealt)
