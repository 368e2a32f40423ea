import tracemalloc
from typing import Any

import numpy as np
import pytest

from flora_hpc import plugins
from flora_hpc.data import shards
from flora_hpc.data.shards import Partition, Population, Shards
from flora_hpc.errors import UserError

LABELS = np.random.default_rng(0).integers(0, 4, 200)
PARTITIONERS = plugins.members("partitioners")


def make(name: str = "iid", seed: int = 0, **options: Any) -> Shards:
    return shards.make(plugins.member("partitioners", name).Options(name=name, **options), LABELS, seed)


def everything(made: Shards, num_clients: int) -> list[list[int]]:
    return [made.examples(client).tolist() for client in range(num_clients)]


# --- a partition


def test_a_client_holds_the_stretch_between_two_starts() -> None:
    partition = Partition(order=np.array([5, 3, 0, 1, 4, 2]), starts=np.array([0, 2, 3, 6]))
    assert partition.num_clients == 3
    assert everything(partition, 3) == [[5, 3], [0], [1, 4, 2]]
    assert partition.sizes(np.array([2, 0])).tolist() == [3, 2]


@pytest.mark.parametrize("name", PARTITIONERS)
def test_a_partition_gives_every_example_to_one_client(name: str) -> None:
    made = make(name, num_clients=12)
    held = everything(made, 12)
    assert made.num_clients == 12
    assert sorted(example for examples in held for example in examples) == list(range(200))
    assert made.sizes(np.arange(12)).tolist() == [len(examples) for examples in held]
    assert min(map(len, held)) >= 1


def test_a_partition_depends_on_the_seed_alone() -> None:
    assert everything(make(seed=3), 10) == everything(make(seed=3), 10)
    assert everything(make(seed=3), 10) != everything(make(seed=4), 10)


def test_a_clients_examples_are_in_random_order() -> None:
    """Otherwise the first batch of a client that does not shuffle would hold one class."""
    (alone,) = everything(make(num_clients=1), 1)
    assert alone != sorted(alone)


def test_more_clients_than_examples() -> None:
    with pytest.raises(UserError) as caught:
        make(num_clients=201)
    assert "partition.num_clients: 201 clients for 200 training examples" in str(caught.value)
    assert "lower it, or set partition.examples_per_client" in str(caught.value)


def test_as_many_clients_as_examples() -> None:
    assert make(num_clients=200).sizes(np.arange(200)).tolist() == [1] * 200


# --- a population


@pytest.mark.parametrize("name", PARTITIONERS)
def test_every_client_of_a_population_draws_as_many_examples(name: str) -> None:
    made = make(name, num_clients=1000, examples_per_client=32)
    assert isinstance(made, Population)
    assert made.num_clients == 1000
    assert made.sizes(np.array([0, 999])).tolist() == [32, 32]
    for client in (0, 17, 999):
        assert len(set(made.examples(client).tolist())) == 32


@pytest.mark.parametrize("name", PARTITIONERS)
def test_a_client_draws_the_same_examples_whenever_it_is_asked(name: str) -> None:
    one, other = (make(name, num_clients=1000, examples_per_client=32) for _ in range(2))
    first = one.examples(500).tolist()
    other.examples(3)
    assert other.examples(500).tolist() == one.examples(500).tolist() == first


def test_clients_and_seeds_draw_different_examples() -> None:
    one, other = (make(seed=seed, num_clients=1000, examples_per_client=32) for seed in (0, 1))
    assert set(one.examples(0).tolist()) != set(one.examples(1).tolist())
    assert set(one.examples(0).tolist()) != set(other.examples(0).tolist())


def test_more_examples_per_client_than_there_are() -> None:
    with pytest.raises(UserError, match=r"partition\.examples_per_client: 201 examples for each client, .* only 200; lower it"):
        make(num_clients=5, examples_per_client=201)


def test_each_client_may_draw_everything() -> None:
    assert sorted(make(num_clients=300, examples_per_client=200).examples(299).tolist()) == list(range(200))


@pytest.mark.parametrize("name", PARTITIONERS)
def test_a_million_clients_take_no_memory(name: str) -> None:
    """One byte each would be more than is allowed here."""
    make(name, num_clients=2, examples_per_client=1).examples(0)  # imports are not what is measured
    tracemalloc.start()
    try:
        made = make(name, num_clients=1_000_000, examples_per_client=32)
        for client in range(0, 1_000_000, 50_000):
            made.examples(client)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000
