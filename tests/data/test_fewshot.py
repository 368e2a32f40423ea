"""The same few examples of every class for every client."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from flora_hpc.data.holdings import Partitioner
from flora_hpc.data.partitioners import fewshot, fewshot_pathological
from flora_hpc.errors import UserError
from tests.data.made_images import made


def build(labels: npt.ArrayLike, shots: int) -> Partitioner:
    return fewshot.build(fewshot.Options(name="fewshot", shots=shots), made(labels))


def test_every_client_gets_so_many_of_every_class() -> None:
    """Four clients with three of each of two classes: 24 examples of 100, labelled 1 and 5."""
    labels = np.repeat([1, 5], [40, 60])
    clients = build(labels, 3).split(4, np.random.default_rng(0))
    for client in range(4):
        assert np.bincount(labels[clients == client]).tolist() == [0, 3, 0, 0, 0, 3]
    assert (clients == -1).sum() == 76


@settings(deadline=None, max_examples=100)
@given(
    labels=st.lists(st.sampled_from([0, 1, 3]), min_size=1, max_size=60),
    shots=st.integers(1, 4),
    num_clients=st.integers(1, 8),
    seed=st.integers(0, 2**32),
)
def test_exactly_so_many_or_a_refusal(labels: list[int], shots: int, num_clients: int, seed: int) -> None:
    sizes = np.unique(labels, return_counts=True)[1]
    if sizes.min() < shots * num_clients:
        with pytest.raises(UserError, match=r"^partition\.shots: .*; lower "):
            build(labels, shots).split(num_clients, np.random.default_rng(seed))
        return
    clients = build(labels, shots).split(num_clients, np.random.default_rng(seed))
    for label in set(labels):
        of_class = clients[np.array(labels) == label]
        assert np.bincount(of_class + 1, minlength=num_clients + 1)[1:].tolist() == [shots] * num_clients


def test_any_example_may_be_taken() -> None:
    """Each of two clients gets one of 20 examples, in 300 splits: each example in 15 +- sqrt(300 x 0.05 x 0.95) of them."""
    partitioner = build(np.zeros(20), 1)
    taken = np.array([partitioner.split(2, np.random.default_rng(seed)) for seed in range(300)])
    for client in (0, 1):
        np.testing.assert_allclose((taken == client).sum(0), 15, atol=5 * np.sqrt(300 * 0.05 * 0.95))


@pytest.mark.parametrize(
    ("shots", "num_clients", "cure"),
    [
        (4, 3, "lower it to 3 at most or partition.num_clients to 2 at most"),  # 10 examples: 3 x 3, or 4 x 2
        (11, 2, "lower it to 5 at most"),  # not for a single client
        (1, 11, "lower partition.num_clients to 10 at most"),
        (11, 11, "lower both it and partition.num_clients"),
    ],
)
def test_a_class_that_has_too_few(shots: int, num_clients: int, cure: str) -> None:
    with pytest.raises(UserError) as caught:
        build(np.repeat([0, 3], [50, 10]), shots).split(num_clients, np.random.default_rng(0))
    assert str(caught.value) == (
        f"partition.shots: {num_clients} clients with {shots} examples of each class need {shots * num_clients} of class 3, "
        f"which has 10; {cure}"
    )


def test_draw_is_even() -> None:
    """Eleven of three classes: 4, 4 and 3; which has 3 is random, a third of 300 each within five times sqrt(300 x 1/3 x 2/3)."""
    labels = np.arange(90) % 3
    partitioner = build(labels, 1)
    counts = np.array([np.bincount(labels[partitioner.draw(11, np.random.default_rng(client))]) for client in range(300)])
    assert (np.sort(counts, axis=1) == [3, 4, 4]).all()
    np.testing.assert_allclose((counts == 3).sum(0), 100, atol=5 * np.sqrt(300 * 2 / 9))


def test_draw_makes_up_for_a_class_that_has_too_few() -> None:
    """12 of three classes, one of which has 2: 2, 5 and 5."""
    labels = np.repeat([0, 1, 2], [2, 20, 20])
    assert np.bincount(labels[build(labels, 1).draw(12, np.random.default_rng(0))]).tolist() == [2, 5, 5]


@pytest.mark.parametrize("module", [fewshot, fewshot_pathological])
@pytest.mark.parametrize("given", [{}, {"shots": 1, "examples_per_client": 1}])
def test_shots_or_examples_per_client(module: object, given: dict[str, int]) -> None:
    with pytest.raises(
        ValidationError, match=r"partition\.shots: give either partition\.shots, .* or partition\.examples_per_client"
    ):
        module.Options(name="fewshot", **given)  # type: ignore[attr-defined]
