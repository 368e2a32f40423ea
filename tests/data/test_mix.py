import time
import tracemalloc

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from flora_hpc.data import mix as mixes
from flora_hpc.data.holdings import Partition, Population
from flora_hpc.data.images import Images, Ints
from flora_hpc.data.mix import Mix, divergence, mix_of, spread
from flora_hpc.data.partitioners import dirichlet

LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 2])  # of which the last image is for testing
TRAIN = np.arange(7)


def small(max_clients: int = 10) -> Mix:
    """Client 0 holds classes 0 and 1, client 1 class 2, and no client holds image 1."""
    return mix_of(Partition(np.array([0, 3, 4, 2, 5, 6]), np.array([0, 4, 6])), LABELS, TRAIN, ["a", "b", "c"], max_clients)


def population(num_clients: int, labels: Ints, num_each: int = 32) -> Population:
    options = dirichlet.Options(name="dirichlet", beta=0.3)
    images = Images(labels, lambda rows: [], str)
    return Population(num_clients, num_each, 0, dirichlet.build(options, images), np.arange(len(labels)))


def test_a_split_worked_out_by_hand() -> None:
    mix = small()
    assert mix.clients.tolist() == [0, 1]
    assert mix.counts.tolist() == [[2, 2, 0], [0, 0, 2]]
    assert mix.sizes.tolist() == [4, 2]
    assert mix.classes.tolist() == [2, 1]
    assert mix.available.tolist() == [3, 2, 2]  # without the test image
    assert mix.held.tolist() == [2, 2, 2]
    assert (mix.num_nobodys, mix.num_examples, mix.overlap) == (1, 6, 1)


def test_divergence_by_hand() -> None:
    """p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4): half of log2(4/3) + log2(2/3) / 2 + 1/2."""
    far = divergence(np.array([[7, 0], [1, 1], [0, 2]]), np.array([5, 5]))
    assert far == pytest.approx([0.311278, 0, 0.311278], abs=1e-6)


def test_divergence_is_bounded() -> None:
    assert divergence(np.array([[4, 0]]), np.array([0, 9])).tolist() == [1]
    assert divergence(np.array([[3, 9]]), np.array([1, 3])).tolist() == [0]


def test_divergence_is_that_of_scipy() -> None:
    """Which gives its square root."""
    rng = np.random.default_rng(0)
    counts, available = rng.poisson(0.7, (50, 20)) + np.eye(50, 20, dtype=int), rng.integers(1, 90, 20)
    counts[:, 0] += counts.sum(1) == 0
    expected = [jensenshannon(row, available, 2) ** 2 for row in counts]
    np.testing.assert_allclose(divergence(counts, available), expected, atol=1e-12)


def test_clients_of_chance_are_as_far_as_chance_puts_them() -> None:
    """Small clients differ from the whole even if all draw at random; large clients hardly do."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 10, 10_000)
    for num_clients in (10, 500):
        starts = np.arange(num_clients + 1) * 10_000 // num_clients
        mix = mix_of(Partition(rng.permutation(10_000), starts), labels, np.arange(10_000), list("abcdefghij"))
        assert mix.divergences.mean() == pytest.approx(mix.by_chance, rel=0.3)
    assert mix.by_chance > 0.08


def test_all_are_shown_where_they_are_few() -> None:
    assert spread(4, 5).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("num", [11, 1000, 10**12])
def test_some_are_shown_one_of_each_stretch(num: int) -> None:
    chosen = spread(num, 10)
    ends = [i * num // 10 for i in range(11)]
    assert all(start <= client < end for start, client, end in zip(ends, chosen.tolist(), ends[1:], strict=False))
    assert chosen.tolist() == spread(num, 10).tolist()


def test_a_spread_meets_classes_that_go_round() -> None:
    """A constant step of 10 would meet every client of one class and none of the other nine."""
    assert len(set((spread(1000, 100) % 10).tolist())) == 10


def test_statistics_are_of_more_clients_than_are_shown() -> None:
    mix = small(max_clients=1)
    assert (mix.num_shown, mix.num_examined, mix.num_clients) == (1, 2, 2)
    assert mix.counts.shape == (1, 3)
    assert mix.examined_all


def test_what_nobody_holds_is_known_of_a_large_partition() -> None:
    labels = np.arange(30_000) % 3
    mix = mix_of(Partition(np.arange(29_000), np.arange(29_001)), labels, np.arange(30_000), ["a", "b", "c"])
    assert (mix.num_clients, mix.num_examined, mix.num_shown) == (29_000, mixes.MOST_EXAMINED, mixes.MOST_SHOWN)
    assert (mix.num_nobodys, mix.num_examples, mix.overlap) == (1000, 29_000, 1)


def test_clients_of_a_population_share_images() -> None:
    mix = mix_of(population(50, np.arange(100) % 4, 20), np.arange(100) % 4, np.arange(100), list("abcd"))
    assert mix.num_examples == 1000
    assert mix.num_nobodys == 100 - mix.held.sum()
    assert mix.overlap == 1000 / mix.held.sum()


def test_a_million_clients_are_quick_and_small() -> None:
    labels = np.arange(2000) % 10
    mix_of(population(2, labels), labels, np.arange(2000), list("abcdefghij"))  # imports are not what is measured
    begun = time.perf_counter()
    tracemalloc.start()
    try:
        mix = mix_of(population(1_000_000, labels), labels, np.arange(2000), list("abcdefghij"))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4_000_000
    assert time.perf_counter() - begun < 60
    assert (mix.num_clients, mix.num_examined, mix.num_shown) == (1_000_000, 10_000, 1000)
    assert (mix.num_examples, mix.num_nobodys) == (32_000_000, None)


def test_fewer_are_examined_where_drawing_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixes, "MOST_WORK", 2000)
    labels = np.arange(2000) % 10
    mix = mix_of(population(1000, labels, 512), labels, np.arange(2000), list("abcdefghij"))
    assert mix.num_examined == 2000 // (10 + 512 // 256)
    assert mix.num_shown == mix.num_examined


def test_the_counts_of_a_run_are_those_of_its_clients() -> None:
    labels = np.array([0, 1, 1, 2, 0, 2])
    clients, counts = mixes.counts_of(Partition(np.arange(6), np.array([0, 2, 5, 6])), labels, 4)
    assert clients.tolist() == [0, 1, 2]
    assert counts.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 0]]


def test_of_clients_that_draw_their_examples_fewer_are_counted_the_more_classes_there_are() -> None:
    labels = np.arange(2000) % 400
    clients, counts = mixes.counts_of(population(1_000_000, labels, 8), labels, 400)
    assert (len(clients), counts.shape[1]) == (99, 400)
    assert (counts.sum(1) == 8).all()
    assert clients.max() > 900_000, "spread over all"
