"""What every partitioner promises; a new file in flora_hpc/data/partitioners is tested the day it appears."""

import numpy as np
import pytest

from flora_hpc import plugins
from flora_hpc.data.images import Ints
from flora_hpc.data.shards import Partitioner, PartitionOptions

NUM_EXAMPLES = 300
LABELS = {
    "mixed": np.random.default_rng(1).integers(0, 5, NUM_EXAMPLES),
    "a single class": np.zeros(NUM_EXAMPLES, np.int64),
    "only the last class": np.full(NUM_EXAMPLES, 4),
    "absent classes": np.arange(NUM_EXAMPLES) % 3 * 2,  # 0, 2 and 4
}


def build(name: str, labels: Ints) -> Partitioner:
    module = plugins.member("partitioners", name)
    return module.build(module.Options(name=name), labels)


@pytest.fixture(params=plugins.members("partitioners"))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=LABELS)
def partitioner(name: str, request: pytest.FixtureRequest) -> Partitioner:
    return build(name, LABELS[request.param])


@pytest.mark.parametrize("num_clients", [1, 7, NUM_EXAMPLES])
def test_split_gives_every_example_to_one_client_and_every_client_an_example(partitioner: Partitioner, num_clients: int) -> None:
    clients = partitioner.split(num_clients, np.random.default_rng(0))
    assert clients.shape == (NUM_EXAMPLES,)
    assert clients.dtype == np.int64
    assert np.unique(clients).tolist() == list(range(num_clients))


@pytest.mark.parametrize("num_drawn", [1, 5, NUM_EXAMPLES])
def test_draw_gives_distinct_examples(partitioner: Partitioner, num_drawn: int) -> None:
    examples = partitioner.draw(num_drawn, np.random.default_rng(0))
    assert examples.shape == (num_drawn,)
    assert examples.dtype == np.int64
    assert len(np.unique(examples)) == num_drawn
    assert 0 <= examples.min() <= examples.max() < NUM_EXAMPLES


def test_split_is_decided_by_the_generator(name: str) -> None:
    def split(seed: int) -> Ints:
        return build(name, LABELS["mixed"]).split(7, np.random.default_rng(seed))

    np.testing.assert_array_equal(split(0), split(0))
    assert (split(0) != split(1)).any()


def test_draw_is_decided_by_the_generator(name: str) -> None:
    def draw(seed: int) -> Ints:
        return build(name, LABELS["mixed"]).draw(20, np.random.default_rng(seed))

    np.testing.assert_array_equal(draw(0), draw(0))
    assert set(draw(0).tolist()) != set(draw(1).tolist())


def test_labels_are_not_changed(name: str) -> None:
    labels = LABELS["mixed"].copy()
    partitioner = build(name, labels)
    partitioner.split(7, np.random.default_rng(0))
    partitioner.draw(20, np.random.default_rng(0))
    np.testing.assert_array_equal(labels, LABELS["mixed"])


def test_it_says_what_it_does(name: str) -> None:
    module = plugins.member("partitioners", name)
    assert issubclass(module.Options, PartitionOptions)
    assert (module.__doc__ or "").strip()
    assert all(field.description for field in module.Options.model_fields.values())
