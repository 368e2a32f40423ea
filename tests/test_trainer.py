from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from flora_hpc import trainer
from flora_hpc.bench import plain
from flora_hpc.config import ClientConfig
from flora_hpc.data.holdings import Partition
from flora_hpc.data.inputs import Features
from flora_hpc.methods._method import Costs, Method
from flora_hpc.optimizers import State

DIM, CLASSES = 3, 2


def linear_method() -> Method:
    """The smallest method there is: one weight matrix on the features."""
    shapes = {"weight": (CLASSES, DIM)}
    return Method(
        shapes,
        lambda rng: {"weight": torch.zeros(shapes["weight"])},
        lambda tensors, noise: tensors["weight"],
        lambda tensors, classes, inputs, noise: inputs @ classes.transpose(1, 2),
        how="one matrix",
    )


def examples(count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, DIM, generator=generator), torch.randint(0, CLASSES, (count,), generator=generator)


SHARDS = Partition(np.arange(12), np.array([0, 7, 9, 12]))  # clients with 7, 2 and 3 examples


def train(clients: list[int], config: ClientConfig, state: State | None = None) -> trainer.Trained:
    features, labels = examples()
    batches = trainer.make_batches(np.array(clients), SHARDS, config, 0, 1)
    task = trainer.Task(linear_method(), Features(features), labels, config)
    return trainer.train(task, trainer.Start(torch.full((6,), 0.1), optimizer=state), batches)


def torch_update(client: int, config: ClientConfig, rounds: int = 1) -> torch.Tensor:
    """The update of one client by torch.optim, its state kept over `rounds` rounds that all start from the same weights."""
    features, labels = examples()
    weight = torch.nn.Parameter(torch.full((CLASSES, DIM), 0.1))
    optimizer = plain.make_optimizer([weight], config)
    for _ in range(rounds):
        weight.data.fill_(0.1)
        batches = trainer.make_batches(np.array([client]), SHARDS, config, 0, 1)
        for rows, present in zip(batches.examples[:, 0], batches.present[:, 0], strict=True):
            rows = torch.from_numpy(rows[present])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(features[rows] @ weight.T, labels[rows]).backward()
            optimizer.step()
    return (weight.detach() - 0.1).flatten()


KINDS = [{"optimizer": "adam"}, {"optimizer": "adamw"}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.8}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_group_of_unequal_clients_gets_what_torch_gives_each_alone(kind: dict[str, Any]) -> None:
    """15, 5 and 5 steps, weights decaying, short last batches."""
    config = ClientConfig(lr=0.1, batch_size=3, epochs=5, weight_decay=0.3, loss="classification", **kind)
    together = train([0, 2, 1], config)
    assert together.num_steps.tolist() == [15, 5, 5]
    for update, client in zip(together.updates, [0, 2, 1], strict=True):
        torch.testing.assert_close(update, torch_update(client, config), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_kept_state_goes_on_where_the_last_round_ended(kind: dict[str, Any]) -> None:
    config = ClientConfig(lr=0.1, batch_size=3, epochs=2, weight_decay=0.3, loss="classification", optimizer_state="keep", **kind)
    second = train([0, 1], config, train([0, 1], config).optimizer)
    for update, client in zip(second.updates, [0, 1], strict=True):
        torch.testing.assert_close(update, torch_update(client, config, rounds=2), rtol=1e-4, atol=1e-6)


def test_clients_of_unequal_size_get_what_each_would_get_alone() -> None:
    config = ClientConfig(lr=0.1, batch_size=3, epochs=2, loss="classification")
    together = train([0, 2, 1], config)
    assert together.num_steps.tolist() == [6, 2, 2]
    for k, client in enumerate([0, 2, 1]):
        alone = train([client], config)
        torch.testing.assert_close(together.updates[k], alone.updates[0], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(together.losses[k], alone.losses[0], rtol=1e-5, atol=1e-7)


def test_the_moments_of_a_finished_client_stand_still() -> None:
    config = ClientConfig(lr=0.1, batch_size=3, epochs=2, loss="classification")
    assert train([0, 2, 1], config).optimizer[-1].flatten().tolist() == [6, 2, 2]


def test_an_epoch_sees_every_example_once_in_batches() -> None:
    config = ClientConfig(batch_size=3, epochs=2)
    batches = trainer.make_batches(np.array([0, 1]), SHARDS, config, 0, 1)
    seen = batches.examples[:, 0][batches.present[:, 0]]
    assert sorted(seen[:7].tolist()) == list(range(7))
    assert sorted(seen[7:].tolist()) == list(range(7))
    assert batches.present[:, 0].sum(1).tolist() == [3, 3, 1, 3, 3, 1]


def test_the_order_of_examples_depends_on_round_and_client_alone() -> None:
    config = ClientConfig(batch_size=3)
    in_group = trainer.make_batches(np.array([0, 1]), SHARDS, config, 0, 1)
    alone = trainer.make_batches(np.array([0]), SHARDS, config, 0, 1)
    later = trainer.make_batches(np.array([0]), SHARDS, config, 0, 2)
    assert (in_group.examples[:, 0] == alone.examples[:, 0]).all()
    assert (later.examples != alone.examples).any()


def test_every_epoch_has_an_order_of_its_own() -> None:
    batches = trainer.make_batches(np.array([0]), SHARDS, ClientConfig(batch_size=1, epochs=2), 0, 1)
    first, second = batches.examples[:7].flatten().tolist(), batches.examples[7:].flatten().tolist()
    assert first != second
    assert sorted(first) == sorted(second) == sorted(SHARDS.examples(0).tolist())


def test_examples_that_fit_into_one_batch_stay_in_order_whoever_is_beside_them() -> None:
    """Their order does not matter, and drawing it takes time; the longer client beside them is shuffled."""
    batches = trainer.make_batches(np.array([0, 2]), SHARDS, ClientConfig(batch_size=3), 0, 1)
    assert batches.examples[0, 1].tolist() == [9, 10, 11]
    assert batches.examples[:, 0].flatten().tolist()[:7] != SHARDS.examples(0).tolist()


def test_every_order_of_examples_is_as_likely_as_every_other() -> None:
    """Client 2 has three examples: in 3,000 rounds each of 6 orders comes 500 times, give or take 5 x sqrt(500 x 5/6) = 102."""
    config = ClientConfig(batch_size=1)
    orders = [tuple(trainer.make_batches(np.array([2]), SHARDS, config, 0, n).examples[:, 0, 0].tolist()) for n in range(3000)]
    counts = [orders.count(order) for order in permutations([9, 10, 11])]
    assert sum(counts) == 3000
    np.testing.assert_allclose(counts, 500, atol=103)


def test_a_short_batch_is_filled_up_with_an_example_of_its_own() -> None:
    batches = trainer.make_batches(np.array([0, 2, 1]), SHARDS, ClientConfig(batch_size=4), 0, 1)
    assert batches.examples.shape == (2, 3, 4)
    assert batches.widths.tolist() == [4, 4]
    assert batches.present.sum(2).tolist() == [[4, 3, 2], [3, 0, 0]]
    for filled, present in zip(batches.examples[:, 0], batches.present[:, 0], strict=True):
        assert set(filled[~present].tolist()) <= set(filled[present].tolist())
    assert set(batches.examples[0, 1].tolist()) == {9, 10, 11}


def test_without_shuffling_the_order_is_that_of_the_shard() -> None:
    batches = trainer.make_batches(np.array([0]), SHARDS, ClientConfig(batch_size=7, shuffle=False), 0, 1)
    assert batches.examples[0, 0].tolist() == list(range(7))


# --- a client's shapes are its own


@pytest.mark.parametrize(
    ("size", "unit", "widths"),
    [(7, 4, [4, 4]), (4, 4, [4]), (5, 1, [4, 1]), (6, 3, [4, 3]), (5, 3, [4, 3]), (3, 2, [4]), (1, 2, [2]), (2, 2, [2])],
)
def test_batches_are_filled_up_to_whole_units_but_not_beyond_a_batch(size: int, unit: int, widths: list[int]) -> None:
    config, holders = ClientConfig(batch_size=4, epochs=2), Partition(np.arange(size), np.array([0, size]))
    batches = trainer.make_batches(np.array([0]), holders, config, 0, 1, unit)
    assert batches.widths.tolist() == widths * 2
    assert trainer.filled_up(np.array([size]), config, unit).tolist() == [sum(widths)]
    assert batches.present.sum() == 2 * size


def test_features_take_whole_batches_and_towers_few_absent_examples() -> None:
    config, method = ClientConfig(batch_size=32), linear_method()
    assert trainer.padding_multiple(method, config, largest=1000) == 32
    assert trainer.padding_multiple(method, config, largest=20) == 20
    assert trainer.padding_multiple(replace(method, costs=Costs(image_positions=5)), config, largest=1000) == 8
    assert trainer.padding_multiple(replace(method, costs=Costs(caption_positions=5)), config, largest=1000) == 8


def test_in_every_epoch_each_batch_is_computed_to_its_end() -> None:
    """Clients with three steps and two an epoch: the second one's first batch of epoch two falls to the first one's short one."""
    config, holders = ClientConfig(batch_size=16, epochs=2), Partition(np.arange(68), np.array([0, 36, 68]))
    batches = trainer.make_batches(np.array([0, 1]), holders, config, 0, 1, 8)
    assert batches.widths.tolist() == [16, 16, 16, 16, 16, 8]
    assert (batches.present.sum(2).max(1) <= batches.widths).all()
    assert batches.present.sum() == 2 * 68


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_batches_of_several_groups_are_those_of_each(epochs: int) -> None:
    """Groups of clients with 7, 2 and 3 examples; the first one's are shuffled, since they are more than one batch."""
    config = ClientConfig(batch_size=3, epochs=epochs)
    groups = [np.array([0, 2]), np.array([1]), np.array([2, 1])]
    for group, batches in zip(groups, trainer.batches_of(groups, SHARDS, config, 5, 2), strict=True):
        alone = trainer.make_batches(group, SHARDS, config, 5, 2)
        for name in ("examples", "present", "sizes", "num_steps", "widths"):
            assert np.array_equal(getattr(batches, name), getattr(alone, name))
        assert batches.origin[:2] == alone.origin[:2] == (5, 2)
        assert np.array_equal(batches.origin[2], group)
