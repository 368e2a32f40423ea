"""What every partitioner promises; a new file in flora_hpc/data/partitioners is tested the day it appears."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flora_hpc import plugins
from flora_hpc.data.holdings import Holdings, Partition, Partitioner, PartitionOptions, Population
from flora_hpc.data.images import Ints
from flora_hpc.errors import UserError
from tests.data.made_images import made, write_clients

NUM_EXAMPLES = 300
LABELS = {
    "mixed": np.random.default_rng(1).integers(0, 5, NUM_EXAMPLES),
    "a single class": np.zeros(NUM_EXAMPLES, np.int64),
    "only the last class": np.full(NUM_EXAMPLES, 4),
    "absent classes": np.arange(NUM_EXAMPLES) % 3 * 2,  # 0, 2 and 4
}
MEMBERS = plugins.members("partitioners")
POPULATIONS = [name for name in MEMBERS if name != "file"]  # a file leaves nothing to chance
INCOMPLETE = {"fewshot", "fewshot_pathological"}  # they leave examples to nobody
FOLDER = TemporaryDirectory()
CHOSEN = {  # options of those that need some, or whose defaults do not suit every set of labels here
    "fewshot": {"shots": 2},
    "fewshot_pathological": {"shots": 2, "classes_per_client": 1},
    "natural": {"column": "writer"},
    "pathological": {"classes_per_client": 1},
}


def chosen(name: str, num_examples: int, num_clients: int) -> dict[str, Any]:
    """Options for so many examples and clients."""
    if name == "file":
        return {"path": write_clients(Path(FOLDER.name) / "clients.csv", np.arange(num_examples) % num_clients)}
    return CHOSEN.get(name, {})


def build(name: str, labels: Ints, num_clients: int, **options: int) -> Partitioner:
    module = plugins.member("partitioners", name)
    writers = np.arange(len(labels)) % 40
    return module.build(
        module.Options(name=name, **(chosen(name, len(labels), num_clients) | options)), made(labels, writer=writers)
    )


def build_population(name: str, labels: Ints, num_drawn: int) -> Partitioner:
    """Few-shot ones take either `shots` or `examples_per_client`."""
    return build(name, labels, 1, examples_per_client=num_drawn, **({"shots": None} if name in INCOMPLETE else {}))


def check(name: str, clients: Ints, num_examples: int, num_clients: int) -> None:
    """Every client has an example, and every example a client unless the partitioner says otherwise."""
    assert clients.shape == (num_examples,)
    assert clients.dtype == np.int64
    held = set(np.unique(clients).tolist())
    assert held - ({-1} if name in INCOMPLETE else set()) == set(range(num_clients))


@pytest.fixture(params=MEMBERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=POPULATIONS)
def population(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=LABELS)
def labels(request: pytest.FixtureRequest) -> Ints:
    return LABELS[request.param]


@pytest.mark.parametrize("num_clients", [5, 7, 40])
def test_split_gives_every_client_an_example_and_every_example_one_client(name: str, labels: Ints, num_clients: int) -> None:
    if name == "fewshot":
        num_clients = min(num_clients, 20)  # with two of each class; "mixed" has 50 of one
    check(name, build(name, labels, num_clients).split(num_clients, np.random.default_rng(0)), NUM_EXAMPLES, num_clients)


@pytest.mark.parametrize("name", MEMBERS)
@settings(deadline=None, max_examples=50)
@given(
    labels=st.lists(st.sampled_from([0, 2, 3, 5]), min_size=1, max_size=60),
    num_clients=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
def test_split_keeps_its_promises_or_says_what_to_change(name: str, labels: list[int], num_clients: int, seed: int) -> None:
    num_clients = min(num_clients, len(labels))  # holdings.make refuses more
    partitioner = build(name, np.array(labels), num_clients)
    refusal = ""
    try:
        clients = partitioner.split(num_clients, np.random.default_rng(seed))
    except UserError as error:
        refusal = str(error)
    if not refusal:
        check(name, clients, len(labels), num_clients)
        np.testing.assert_array_equal(partitioner.split(num_clients, np.random.default_rng(seed)), clients)
        return
    assert name in CHOSEN  # the others can always be split
    assert refusal.startswith("partition.")
    assert "; lower " in refusal or "; raise " in refusal


@pytest.mark.parametrize("num_drawn", [1, 5, NUM_EXAMPLES])
def test_draw_gives_distinct_examples(population: str, labels: Ints, num_drawn: int) -> None:
    examples = build_population(population, labels, num_drawn).draw(num_drawn, np.random.default_rng(0))
    assert examples.shape == (num_drawn,)
    assert examples.dtype == np.int64
    assert len(np.unique(examples)) == num_drawn
    assert 0 <= examples.min() <= examples.max() < NUM_EXAMPLES


@pytest.mark.parametrize("name", POPULATIONS)
@settings(deadline=None, max_examples=50)
@given(labels=st.lists(st.sampled_from([0, 2, 3, 5]), min_size=1, max_size=60), seed=st.integers(0, 2**32), data=st.data())
def test_draw_gives_distinct_examples_whatever_the_labels(name: str, labels: list[int], seed: int, data: st.DataObject) -> None:
    num_drawn = data.draw(st.integers(1, len(labels)))
    partitioner = build_population(name, np.array(labels), num_drawn)
    examples = partitioner.draw(num_drawn, np.random.default_rng(seed))
    assert len(set(examples.tolist()) & set(range(len(labels)))) == len(examples) == num_drawn
    np.testing.assert_array_equal(partitioner.draw(num_drawn, np.random.default_rng(seed)), examples)


@pytest.mark.parametrize("mean", [1, 20, NUM_EXAMPLES])
def test_size_is_one_or_more_and_decided_by_the_generator(population: str, mean: int) -> None:
    size = build_population(population, LABELS["mixed"], mean).size
    if size is None:
        return  # all clients draw alike
    uniforms = np.linspace(0, 1, 50, endpoint=False)
    sizes = size(mean, uniforms)
    assert sizes.dtype == np.int64
    assert 1 <= sizes.min() < sizes.max()
    np.testing.assert_array_equal(size(mean, uniforms[::-1]), sizes[::-1])


@pytest.mark.parametrize("mean", [1, 5, 40, NUM_EXAMPLES])
def test_many_clients_at_once_draw_what_each_draws_alone(population: str, labels: Ints, mean: int) -> None:
    """Of a population; the order of clients and their number decide nothing."""
    drawn = Population(10**12, mean, 3, build_population(population, labels, mean), np.arange(NUM_EXAMPLES) * 7)
    check_together(drawn, np.array([5, 0, 10**12 - 1, 77, 78, 79]))


def test_the_shares_of_many_clients_are_those_of_each(name: str) -> None:
    """Of a split, in which few-shot ones leave examples to nobody."""
    clients = build(name, LABELS["mixed"], 7).split(7, np.random.default_rng(0))
    order = np.argsort(clients, kind="stable")
    check_together(Partition(order, np.searchsorted(clients[order], np.arange(8))), np.array([6, 0, 3]))


def check_together(holdings: Holdings, clients: Ints) -> None:
    """Some, one and none of `clients`, against one after the other; what is handed out is no view of what is kept."""
    for some in (clients, clients[1:2], clients[:0]):
        rows, sizes = holdings.examples_of(some)
        parts = [holdings.examples(client).copy() for client in some.tolist()]
        assert (rows.dtype, sizes.dtype) == (np.int64, np.int64)
        assert rows.tolist() == [row for part in parts for row in part.tolist()]
        assert sizes.tolist() == holdings.sizes(some).tolist() == [len(part) for part in parts]
        rows[:] = -1
        assert all(map(np.array_equal, parts, map(holdings.examples, some.tolist())))


@pytest.mark.parametrize("name", POPULATIONS)
def test_split_is_decided_by_the_generator(name: str) -> None:
    def split(seed: int) -> Ints:
        return build(name, LABELS["mixed"], 7).split(7, np.random.default_rng(seed))

    np.testing.assert_array_equal(split(0), split(0))
    assert (split(0) != split(1)).any()


def test_draw_is_decided_by_the_generator(population: str) -> None:
    def draw(seed: int) -> Ints:
        return build_population(population, LABELS["mixed"], 20).draw(20, np.random.default_rng(seed))

    np.testing.assert_array_equal(draw(0), draw(0))
    assert set(draw(0).tolist()) != set(draw(1).tolist())


def test_labels_are_not_changed(name: str) -> None:
    images = made(LABELS["mixed"], writer=np.arange(NUM_EXAMPLES) % 40)
    images.labels.flags.writeable = False
    module = plugins.member("partitioners", name)
    module.build(module.Options(name=name, **chosen(name, NUM_EXAMPLES, 7)), images).split(7, np.random.default_rng(0))
    if name in POPULATIONS:
        build_population(name, images.labels, 20).draw(20, np.random.default_rng(0))
    np.testing.assert_array_equal(images.labels, LABELS["mixed"])


def test_it_says_what_it_does(name: str) -> None:
    module = plugins.member("partitioners", name)
    assert issubclass(module.Options, PartitionOptions)
    assert (module.__doc__ or "").strip()
    assert all(field.description for field in module.Options.model_fields.values())
