"""A few classes for each client, with and without shots."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flora_hpc.data.holdings import Partitioner
from flora_hpc.data.images import Ints
from flora_hpc.data.partitioners import fewshot_pathological, pathological
from flora_hpc.data.partitioners._holders import choose
from flora_hpc.errors import UserError
from tests.data.made_images import made


def build(labels: npt.ArrayLike, per_client: int, shots: int | None = None) -> Partitioner:
    options: dict[str, Any] = {"classes_per_client": per_client}
    if shots is None:
        return pathological.build(pathological.Options(name="pathological", **options), made(labels))
    return fewshot_pathological.build(fewshot_pathological.Options(name="f", shots=shots, **options), made(labels))


def table(labels: npt.ArrayLike, clients: Ints, num_clients: int) -> Ints:
    """Examples (num_clients, num_classes) of each client and class."""
    result = np.zeros((num_clients, int(np.max(labels)) + 1), np.int64)
    is_held = clients >= 0
    np.add.at(result, (clients[is_held], np.asarray(labels)[is_held]), 1)
    return result


def test_every_client_holds_its_classes_in_even_parts() -> None:
    """Six clients with two of three classes, labelled 0, 2 and 4: four holders for a class of 40, so that each gets 10 of it."""
    labels = np.arange(120) % 3 * 2
    counts = table(labels, build(labels, 2).split(6, np.random.default_rng(0)), 6)
    assert set(counts.ravel().tolist()) == {0, 10}
    assert ((counts > 0).sum(1) == 2).all()
    assert (counts > 0).sum(0).tolist() == [4, 0, 4, 0, 4]


def test_holders_and_parts_are_equal_to_within_one() -> None:
    """Seven clients with three of five classes: 21 places, so that four classes have 4 holders and one has 5."""
    labels = np.arange(503) % 5
    counts = table(labels, build(labels, 3).split(7, np.random.default_rng(0)), 7)
    assert ((counts > 0).sum(1) == 3).all()
    assert sorted((counts > 0).sum(0).tolist()) == [4, 4, 4, 4, 5]
    for of_class in counts.T:
        assert np.ptp(of_class[of_class > 0]) <= 1
    assert counts.sum() == 503


def test_a_small_class_has_fewer_holders() -> None:
    """Four clients, two classes each: the class of one example has one holder, and the other three share what is left, 7 places;
    of these, each can have 4 at most."""
    labels = np.repeat([0, 1, 2, 3], [1, 50, 50, 50])
    counts = table(labels, build(labels, 2).split(4, np.random.default_rng(0)), 4)
    assert ((counts > 0).sum(1) == 2).all()
    assert sorted((counts > 0).sum(0).tolist()) == [1, 2, 2, 3]
    assert (counts > 0).sum(0)[0] == 1


@settings(deadline=None, max_examples=100)
@given(
    labels=st.lists(st.sampled_from([0, 1, 3, 4]), min_size=1, max_size=60),
    num_clients=st.integers(1, 15),
    per_client=st.integers(1, 4),
    shots=st.none() | st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_exactly_so_many_classes_or_a_refusal_whose_cure_works(
    labels: list[int], num_clients: int, per_client: int, shots: int | None, seed: int
) -> None:
    """A split is refused if and only if none exists, by the counting condition of Gale and Ryser."""
    num_classes, sizes = len(set(labels)), np.bincount(labels) // (shots or 1)
    if per_client > num_classes:
        with pytest.raises(UserError, match=rf"classes_per_client: {per_client} classes .* lower it to {num_classes} at most"):
            build(labels, per_client, shots)
        return

    def exists(num_clients: int) -> bool:
        return bool(np.minimum(sizes, num_clients).sum() >= num_clients * per_client)

    partitioner, rng = build(labels, per_client, shots), np.random.default_rng(seed)
    if shots is None and num_clients * per_client < num_classes:
        with pytest.raises(
            UserError, match=rf"cannot hold all {num_classes} classes; raise it to {-(-num_classes // per_client)} "
        ):
            partitioner.split(num_clients, rng)
    elif not exists(num_clients):
        most = max(n for n in range(num_clients) if exists(n))
        expected = f"num_clients to {most} at most" if shots else f"lower it to {most} at most"
        with pytest.raises(UserError, match=expected if most else "lower"):
            partitioner.split(num_clients, rng)
    else:
        counts = table(labels, partitioner.split(num_clients, rng), num_clients)
        assert ((counts > 0).sum(1) == per_client).all()
        if shots is None:
            assert counts.sum() == len(labels)
            assert all(np.ptp(of_class[of_class > 0]) <= 1 for of_class in counts.T if of_class.any())
        else:
            assert set(counts.ravel().tolist()) <= {0, shots}


@pytest.mark.parametrize(("num_classes", "per_client"), [(6, 2), (5, 3), (4, 3)])
def test_any_classes_may_meet_at_a_client(num_classes: int, per_client: int) -> None:
    """Each pair of classes at as many of 3000 clients as any other. It is at a client with probability p = c (c - 1) / C (C - 1),
    so at 3000 p +- sqrt(3000 p (1 - p)) of independent clients; equal numbers of holders only make it more even."""
    client_classes = choose(np.full(num_classes, 3000), 3000, per_client, np.random.default_rng(0))
    p = per_client * (per_client - 1) / (num_classes * (num_classes - 1))
    together = np.zeros((num_classes, num_classes))
    for column in range(per_client):
        for other in range(per_client):
            np.add.at(together, (client_classes[:, column], client_classes[:, other]), 1)
    pairs = together[~np.eye(num_classes, dtype=bool)]
    np.testing.assert_allclose(pairs, 3000 * p, atol=5 * np.sqrt(3000 * p * (1 - p)))


def test_no_client_is_favoured() -> None:
    """Of 600 splits, 7 clients hold class 0 in 600 x 1/5 +- sqrt(600 x 1/5 x 4/5) each, and it is not larger at some of them."""
    labels = np.arange(53) % 5
    partitioner = build(labels, 1)
    tables = np.array([table(labels, partitioner.split(7, np.random.default_rng(seed)), 7) for seed in range(600)])
    num_held = (tables[:, :, 0] > 0).sum(0)
    np.testing.assert_allclose(num_held, num_held.mean(), atol=5 * np.sqrt(600 * 0.2 * 0.8))
    sizes = tables.sum(2)
    np.testing.assert_allclose(sizes.mean(0), 53 / 7, atol=5 * sizes.std() / np.sqrt(600))


def test_what_is_left_over_goes_to_any_holder() -> None:
    """Of three examples one of two clients gets two: the first in half of 400 splits, within five times sqrt(400 / 4)."""
    partitioner = build([0, 0, 0], 1)
    more = [np.bincount(partitioner.split(2, np.random.default_rng(seed)))[0] == 2 for seed in range(400)]
    assert abs(sum(more) - 200) <= 50


# --- a population


def test_draw_takes_as_many_classes_evenly() -> None:
    """Eleven examples of three of four classes: 4, 4 and 3."""
    labels = np.arange(200) % 4 * 2
    for shots in (None, 1):
        partitioner = build(labels, 3, shots)
        for client in range(20):
            counts = np.bincount(labels[partitioner.draw(11, np.random.default_rng(client))], minlength=7)
            assert sorted(counts.tolist()) == [0, 0, 0, 0, 3, 4, 4]


def test_draw_takes_all_classes_alike() -> None:
    """400 clients with one of four classes of any size: 100 +- sqrt(400 x 1/4 x 3/4) clients for each."""
    labels = np.repeat([0, 1, 2, 3], [20, 50, 100, 1000])
    partitioner = build(labels, 1)
    picked = [labels[partitioner.draw(5, np.random.default_rng(client))[0]] for client in range(400)]
    np.testing.assert_allclose(np.bincount(picked), 100, atol=5 * np.sqrt(75))


def test_draw_goes_on_to_other_classes_only_when_its_own_have_too_few() -> None:
    """25 examples from two classes of 10: both whole, and 5 of a third. 12 from classes of 4 and 10: 4 and 8."""
    labels = np.arange(50) % 5
    counts = np.bincount(labels[build(labels, 2).draw(25, np.random.default_rng(0))], minlength=5)
    assert sorted(counts.tolist()) == [0, 0, 5, 10, 10]
    labels = np.repeat([0, 1], [4, 10])
    assert np.bincount(labels[build(labels, 2).draw(12, np.random.default_rng(0))]).tolist() == [4, 8]


# --- what cannot be


def message(labels: npt.ArrayLike, num_clients: int, per_client: int, shots: int | None = None) -> str:
    with pytest.raises(UserError) as caught:
        build(labels, per_client, shots).split(num_clients, np.random.default_rng(0))
    return str(caught.value)


def test_more_classes_for_a_client_than_there_are() -> None:
    assert message([0, 2, 2], 1, 3) == (
        "partition.classes_per_client: 3 classes for each client, but the training images are of 2; lower it to 2 at most"
    )


def test_classes_without_a_holder() -> None:
    """Three clients with two classes each hold six of ten classes; five clients, or four classes each, hold all."""
    assert message(np.arange(100) % 10, 3, 2) == (
        "partition.num_clients: 3 clients with 2 classes each cannot hold all 10 classes; raise it to 5 at least, "
        "or partition.classes_per_client to 4"
    )


def test_more_clients_than_examples_suffice_for() -> None:
    """Ten examples are ten places, but of class 1 only two: five clients with both classes of two cannot be, two can."""
    assert message(np.repeat([0, 1], [8, 2]), 5, 2) == (
        "partition.num_clients: 5 clients with 2 classes each are too many for 10 training examples; "
        "lower it to 2 at most, or lower partition.classes_per_client"
    )


def test_more_shots_than_examples_suffice_for() -> None:
    """20 examples of each of 3 classes, 6 clients with 2 classes: 4 holders for each class, so 5 shots. Of 7 shots each class has
    two, which is 6 places and 3 clients."""
    assert message(np.arange(60) % 3, 6, 2, shots=7) == (
        "partition.shots: 6 clients with 7 examples of 2 classes are too many for 60 images; "
        "lower it to 5 at most or partition.num_clients to 3 at most"
    )
    build(np.arange(60) % 3, 2, shots=5).split(6, np.random.default_rng(0))
    build(np.arange(60) % 3, 2, shots=7).split(3, np.random.default_rng(0))
