import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flora_hpc import plugins
from flora_hpc.data import holdings
from flora_hpc.data.holdings import Holdings, Partition, Partitioner, Population
from flora_hpc.data.images import Images, Ints
from flora_hpc.data.partitioners import iid
from flora_hpc.errors import UserError
from tests.data.made_images import made as images_of

ROWS = np.arange(200) * 3 + 1000  # the training images, among others of a dataset
LABELS = np.random.default_rng(0).integers(0, 4, 2000)
IMAGES = images_of(LABELS, writer=np.arange(2000) % 60)
PARTITIONERS = [name for name in plugins.members("partitioners") if name != "file"]  # it has tests of its own
SHOTS = {"fewshot", "fewshot_pathological"}  # they leave images to nobody, and take shots or examples_per_client
CHOSEN: dict[str, dict[str, Any]] = {"natural": {"column": "writer"}}


def make(name: str = "iid", seed: int = 0, **options: Any) -> Holdings:
    """Holdings of the images ROWS; few-shot partitioners give two shots."""
    shots = {"shots": 2} if name in SHOTS and "examples_per_client" not in options else {}
    chosen = plugins.member("partitioners", name).Options(name=name, **CHOSEN.get(name, {}), **shots, **options)
    return holdings.make(chosen, IMAGES, ROWS, seed)


def everything(made: Holdings, num_clients: int) -> list[list[int]]:
    return [made.examples(client).tolist() for client in range(num_clients)]


# --- a partition


def test_a_client_holds_the_stretch_between_two_starts() -> None:
    partition = Partition(order=np.array([5, 3, 0, 1, 4, 2]), starts=np.array([0, 2, 3, 6]))
    assert partition.num_clients == 3
    assert everything(partition, 3) == [[5, 3], [0], [1, 4, 2]]
    assert partition.sizes(np.array([2, 0])).tolist() == [3, 2]


@pytest.mark.parametrize("name", PARTITIONERS)
def test_a_partition_gives_rows_to_one_client_each(name: str) -> None:
    """All rows are held, except by few-shot clients: 12 clients get two of each class, which has 40 to 60 examples."""
    made = make(name, num_clients=12)
    examples_by_client = everything(made, 12)
    assert made.num_clients == 12
    all_rows = sorted(row for rows in examples_by_client for row in rows)
    if name in SHOTS:
        assert len(all_rows) == len(set(all_rows)) == 12 * 2 * {"fewshot": 4, "fewshot_pathological": 2}[name]
        assert set(all_rows) < set(ROWS.tolist())
    else:
        assert all_rows == ROWS.tolist()
    assert made.sizes(np.arange(12)).tolist() == [len(examples) for examples in examples_by_client]
    assert min(map(len, examples_by_client)) >= 1


def test_examples_of_nobody_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows 7, 5, 3, 2 and 9, no client has the second and the last; client 1 has one, client 0 two, in any order."""

    class Rule:
        @staticmethod
        def build(options: object, images: Images) -> Partitioner:
            assert images.labels.tolist() == [70, 50, 30, 20, 90]
            clients = np.array([0, -1, 1, 0, -1])
            return Partitioner(lambda num_clients, rng: clients, lambda num_drawn, rng: clients)

    monkeypatch.setattr(plugins, "member", lambda family, name: Rule)
    made = holdings.make(
        holdings.PartitionOptions(name="rule", num_clients=2), images_of(np.arange(10) * 10), np.array([7, 5, 3, 2, 9]), seed=0
    )
    assert made.sizes(np.array([0, 1])).tolist() == [2, 1]
    assert sorted(made.examples(0).tolist()) == [2, 7]
    assert made.examples(1).tolist() == [3]


@pytest.mark.parametrize("name", PARTITIONERS)
def test_columns_and_labels_are_those_of_the_rows(name: str) -> None:
    """What the partitioner sees of a row is what the dataset says of it: few-shot clients have two of each class, writers stay
    whole, others keep to two classes."""
    made = make(name, num_clients=12)
    for client in range(12):
        rows = made.examples(client)
        if name == "fewshot":
            assert np.bincount(LABELS[rows]).tolist() == [2, 2, 2, 2]
        if name in ("pathological", "fewshot_pathological"):
            assert len(set(LABELS[rows].tolist())) == 2
        if name == "natural":
            rest = np.setdiff1d(ROWS, rows)
            assert not set((rows % 60).tolist()) & set((rest % 60).tolist())


def test_a_partition_depends_on_the_seed_alone() -> None:
    assert everything(make(seed=3), 10) == everything(make(seed=3), 10)
    assert everything(make(seed=3), 10) != everything(make(seed=4), 10)


def test_a_clients_examples_are_in_random_order() -> None:
    """In order, the first batch of a client that does not shuffle would hold one class."""
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
def test_every_client_of_a_population_draws_as_many_rows_as_its_size(name: str) -> None:
    made = make(name, num_clients=1000, examples_per_client=32)
    assert isinstance(made, Population)
    assert made.num_clients == 1000
    sizes = made.sizes(np.array([0, 17, 999])).tolist()
    if made.partitioner.size is None:
        assert sizes == [32, 32, 32]
    for client, size in zip((0, 17, 999), sizes, strict=True):
        assert len(set(made.examples(client).tolist()) & set(ROWS.tolist())) == len(made.examples(client)) == size


@pytest.mark.parametrize("name", PARTITIONERS)
def test_a_client_draws_the_same_examples_whenever_it_is_asked(name: str) -> None:
    one, other = (make(name, num_clients=1000, examples_per_client=32) for _ in range(2))
    first = one.examples(500).tolist()
    other.examples(3)
    assert other.examples(500).tolist() == one.examples(500).tolist() == first


@pytest.mark.parametrize("name", PARTITIONERS)
def test_examples_of_later_rounds_are_those_of_the_first(name: str) -> None:
    """A population remembers what its clients drew; a client alone, which draws anew, is the measure."""
    made = make(name, num_clients=50, examples_per_client=8)
    for clients in (np.array([3, 7, 20]), np.array([20, 4, 3]), np.arange(50)):
        examples, sizes = made.examples_of(clients)
        assert examples.tolist() == [row for client in clients.tolist() for row in made.examples(client).tolist()]
        examples[:] = -1  # the caller may change its copy
        assert sizes.sum() == len(examples)


@pytest.mark.parametrize(("num_clients", "draws"), [(1000, 6), (holdings.MAX_TABLE, 12)])
def test_each_client_of_a_population_draws_once(num_clients: int, draws: int) -> None:
    """Clients of a later round drew their examples before, unless there are too many clients to remember."""
    made = make(num_clients=num_clients, examples_per_client=2)
    assert isinstance(made, Population)
    drawn = []

    def draw(num_drawn: int, rng: np.random.Generator) -> Ints:
        drawn.append(num_drawn)
        return made.partitioner.draw(num_drawn, rng)

    watched = replace(made, partitioner=made.partitioner._replace(draw=draw, draw_many=None))
    watched.examples_of(np.arange(6))
    watched.examples_of(np.arange(6))
    assert len(drawn) == draws


def test_clients_and_seeds_draw_different_examples() -> None:
    one, other = (make(seed=seed, num_clients=1000, examples_per_client=32) for seed in (0, 1))
    assert set(one.examples(0).tolist()) != set(one.examples(1).tolist())
    assert set(one.examples(0).tolist()) != set(other.examples(0).tolist())


def test_more_examples_per_client_than_there_are() -> None:
    with pytest.raises(UserError, match=r"partition\.examples_per_client: 201 examples for each client, .* only 200; lower it"):
        make(num_clients=5, examples_per_client=201)


def test_each_client_may_draw_everything() -> None:
    assert sorted(make(num_clients=300, examples_per_client=200).examples(299).tolist()) == ROWS.tolist()


@pytest.mark.parametrize("name", PARTITIONERS)
def test_a_million_clients_take_no_memory(name: str) -> None:
    """One byte a client would be more than this test allows."""
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


@pytest.mark.parametrize(
    ("split", "problem"),
    [
        (np.zeros(9, np.int64), "and is int64 (9,)"),
        (np.zeros(10), "and is float64 (10,)"),
        ([0] * 10, "and is list"),
        (np.arange(10), "and has client 2"),
        (np.full(10, -2), "and has client -2"),
        (np.zeros(10, np.int64), "and lacks client 1"),
    ],
)
def test_what_a_partitioner_returns_is_checked(split: Any, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user may have written it."""
    monkeypatch.setattr(iid, "build", lambda options, images: Partitioner(lambda num_clients, rng: split, lambda n, rng: split))
    with pytest.raises(UserError) as error:
        holdings.make(iid.Options(name="iid", num_clients=2), images_of([0] * 10), np.arange(10), 0)
    rule = "must be 10 whole numbers from -1 (nobody) to 1, each client's at least once, "
    assert str(error.value) == f"partition.name: iid: the result of its split {rule}{problem}; mend the partitioner"
