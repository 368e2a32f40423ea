"""Rounds of the trainer, with groups, masks and float32, equal those of the pure functions in float64."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flora_hpc import round as rounds
from flora_hpc import trainer
from flora_hpc.algorithms._algorithm import Algorithm, Sharing
from flora_hpc.algorithms.fedavg import mean
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.meter import Meter
from flora_hpc.config import CohortConfig
from flora_hpc.data.inputs import Features
from flora_hpc.memories import Memories
from flora_hpc.methods._lora import layers_of
from flora_hpc.methods._method import Method
from flora_hpc.setup import Setup
from tests.pure_rounds import Client, Federated, Gradients, build
from tests.test_round import algorithm, four_clients, play, started, values

A, B = "layer.lora_A", "layer.lora_B"
SIZES = {A: 6, B: 4}
SGD = {"optimizer": "sgd", "weight_decay": 0, "epochs": 2}
BASE = torch.tensor([[0.5, -0.5, 0.25], [0.0, 1.0, -0.25]])
INITIAL = torch.tensor([0.5, -1.0, 0.25, 0.75, 0.5, -0.5, 0.0, 0.0, 0.0, 0.0])  # B starts at zero
NUM_ROUNDS = 4


def low_rank_method() -> Method:
    """A matrix to which clients add the product of two low-rank factors."""

    def classes(tensors: Any, noise: Any) -> torch.Tensor:
        return BASE + tensors[B] @ tensors[A]

    return Method(
        {A: (2, 3), B: (2, 2)},
        lambda rng: {A: INITIAL[:6].view(2, 3), B: torch.zeros(2, 2)},
        classes,
        lambda tensors, classes, inputs, noise: inputs @ classes.transpose(1, 2),
        how="two factors",
        layers=layers_of({A: (2, 3), B: (2, 2)}, 1.0),
    )


def parts(name: str, **options: Any) -> Algorithm:
    return build(name, (A, B), 4, **options)


DECOMPOSED = ("flexlora", "flexlora, values to both", "fedsvd")
RECIPES: dict[str, Callable[[], Algorithm]] = {
    "fedavg": lambda: parts("fedavg"),
    "fedprox": lambda: parts("fedprox", mu=0.5),
    "scaffold": lambda: parts("scaffold", lr=0.9),
    "feddyn": lambda: parts("feddyn", alpha=0.5),
    "fednova": lambda: parts("fednova", mu=0.1),
    "ditto": lambda: parts("ditto", weight=0.5),
    "fedsa_lora": lambda: parts("fedsa_lora"),
    "ffa_lora": lambda: parts("ffa_lora"),
    "rolora": lambda: parts("rolora"),
    "by_name, private": lambda: parts("by_name", private=("*.lora_A",)),
    "by_name, frozen": lambda: parts("by_name", frozen=("*.lora_A",)),
    "scaffold, A frozen": lambda: parts("scaffold")._replace(sharing=parts("ffa_lora").sharing),
    "feddyn, B private": lambda: parts("feddyn")._replace(sharing=parts("fedsa_lora").sharing),
    "ditto, A frozen": lambda: parts("ditto")._replace(sharing=parts("ffa_lora").sharing),
    "fedadam, B private": lambda: parts("fedadam")._replace(sharing=parts("fedsa_lora").sharing),
    "fedprox, A and B in turn": lambda: parts("fedprox")._replace(sharing=parts("rolora").sharing),
    "a server that remembers what is frozen": lambda: parts("fedavgm")._replace(sharing=parts("rolora").sharing),
    "flexlora": lambda: parts("flexlora"),
    "flexlora, values to both": lambda: parts("flexlora", values="both", weights="uniform"),
    "lora_fair": lambda: parts("lora_fair", penalty=0.5),
    "fedsvd": lambda: parts("fedsvd"),
    "scaffold, weights by examples": lambda: parts("scaffold")._replace(combine=mean("examples")),
}


def prepared(chosen: Algorithm, size: int = 4) -> tuple[Setup, rounds.State]:
    """Four clients that train a low-rank adapter; `size` of them take part in a round."""
    setup, _ = four_clients(**SGD)
    method = low_rank_method()
    setup = replace(setup, method=method, federation=algorithm(chosen, method), cohort=CohortConfig(size=size))
    _, state = started(setup)
    memory = setup.federation.memory(INITIAL, setup.client)
    state.adapter, state.server = INITIAL.clone(), setup.federation.server.init(INITIAL)
    state.memories = Memories(Meter(Serial()), memory, 2**30) if memory else None
    return setup, state


def pure_client(setup: Setup, client: int) -> Client:
    """A client's gradients in float64, by autograd on the batches that the trainer draws."""
    assert isinstance(setup.inputs, Features)
    features = setup.inputs.values.double()

    def gradient(params: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        leaf = params.clone().requires_grad_()
        weight = BASE.double() + leaf[6:].view(2, 2) @ leaf[:6].view(2, 3)
        (result,) = torch.autograd.grad(F.cross_entropy(features[rows] @ weight.T, setup.labels[rows]), leaf)
        return result

    def gradients(number: int) -> Gradients:
        batches = trainer.make_batches(np.array([client]), setup.holdings, setup.client, setup.seed, number)
        steps = zip(batches.examples[:, 0], batches.present[:, 0], strict=True)
        return [lambda params, rows=torch.from_numpy(rows[present]): gradient(params, rows) for rows, present in steps]

    return Client(int(setup.holdings.sizes(np.array([client]))[0]), gradients)


def pure(chosen: Algorithm, setup: Setup) -> Federated:
    return Federated(chosen, INITIAL.double(), setup.client.lr, 4, SIZES, layers=setup.method.layers)


def play_pure(federated: Federated, setup: Setup, number: int, rejected: Sequence[int] = ()) -> None:
    clients = rounds.participants(setup, number)[0].tolist()
    federated.play(number, {client: pure_client(setup, client) for client in clients if client not in rejected})


def memories_of(setup: Setup, state: rounds.State) -> dict[str, torch.Tensor]:
    """The rows (4, n) of all clients, by name."""
    everybody = np.arange(4)
    return state.memories.borrow(everybody).read(everybody) if state.memories is not None else {}


def assert_same_memories(setup: Setup, state: rounds.State, federated: Federated) -> None:
    roles = setup.federation.roles[0]
    for name, rows in memories_of(setup, state).items():
        expected = torch.stack([federated.memory(client)[name] for client in range(4)])
        columns = roles.own if name == "private" else roles.trained
        torch.testing.assert_close(rows, columns.take(expected).float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [4, 3, 1])
@pytest.mark.parametrize("recipe", RECIPES)
def test_rounds_equal_those_of_the_pure_functions(recipe: str, size: int) -> None:
    """Adapter and memories, to the rounding of float32; with fewer participants, memories wait for their clients."""
    chosen = RECIPES[recipe]()
    setup, state = prepared(chosen, size)
    federated = pure(chosen, setup)
    for number in range(1, NUM_ROUNDS + 1):
        before = state.adapter
        play(setup, state, number)
        play_pure(federated, setup, number)
        if recipe in DECOMPOSED:  # vectors of singular values that are equal, or zero, are arbitrary
            real, expected = (setup.method.unpack(adapter) for adapter in (state.adapter, federated.adapter.float()))
            torch.testing.assert_close(real[B] @ real[A], expected[B] @ expected[A], rtol=1e-4, atol=1e-6)
            federated.adapter = state.adapter.double()
        torch.testing.assert_close(state.adapter, federated.adapter.float(), rtol=1e-4, atol=1e-6)
        assert_same_memories(setup, state, federated)
        rest = ~federated.mask(number, "shared") & (setup.federation.combine.factors is None)
        assert state.adapter[rest].equal(before[rest]), "what is frozen or private does not move at the server"
        assert not state.adapter.equal(before)


@pytest.mark.parametrize("recipe", ["scaffold", "feddyn", "ditto", "fedsa_lora", "by_name, private"])
def test_a_rejected_client_remembers_what_it_did(recipe: str) -> None:
    """Its images are not finite in round 2; it takes part in round 3 with its memory of round 1."""
    chosen = RECIPES[recipe]()
    setup, state = prepared(chosen)
    federated, clean = pure(chosen, setup), values(setup).clone()
    for number in range(1, NUM_ROUNDS + 1):
        rejected = [1] if number == 2 else []
        before = memories_of(setup, state)
        values(setup)[5:8] = torch.nan if rejected else clean[5:8]
        record = play(setup, state, number)
        assert record.row["num_rejected"][0] == len(rejected)
        play_pure(federated, setup, number, rejected)
        torch.testing.assert_close(state.adapter, federated.adapter.float(), rtol=1e-4, atol=1e-6)
        assert_same_memories(setup, state, federated)
        for name, rows in memories_of(setup, state).items():
            changed = (rows != before[name]).any(1).tolist()
            assert changed == [client not in rejected for client in range(4)], name


def test_tensors_that_take_turns_are_trained_in_turn() -> None:
    setup, state = prepared(RECIPES["rolora"]())
    for number in (1, 2, 3, 4):
        before = state.adapter
        play(setup, state, number)
        moved = (state.adapter != before).view(-1)
        assert (bool(moved[:6].any()), bool(moved[6:].any())) == (number % 2 == 0, number % 2 == 1)


def test_bytes_are_those_of_what_is_shared_and_of_messages() -> None:
    """Of 10 numbers, 6 are in A and 4 in B."""
    expected = {  # down, up, in numbers
        "fedavg": (10, 10),
        "scaffold": (20, 20),
        "scaffold, A frozen": (8, 8),
        "feddyn": (10, 10),
        "fednova": (10, 11),
        "ditto": (10, 10),
        "fedsa_lora": (6, 6),
        "ffa_lora": (4, 4),
        "rolora": (4, 4),
        "flexlora": (10, 10),
        "fedsvd": (10, 4),
    }
    for recipe, (down, up) in expected.items():
        setup, state = prepared(RECIPES[recipe]())
        record = play(setup, state)
        assert record.clients["downlink_bytes"].tolist() == [4 * down] * 4, recipe
        assert record.clients["uplink_bytes"].tolist() == [4 * up] * 4, recipe


def test_private_tensors_of_a_client_differ_from_those_of_others() -> None:
    setup, state = prepared(RECIPES["fedsa_lora"]())
    for number in (1, 2):
        play(setup, state, number)
    rows = memories_of(setup, state)["private"]
    assert rows.shape == (4, 4)
    assert len({tuple(row) for row in rows.tolist()}) == 4


def test_what_is_frozen_is_not_sent() -> None:
    """Roles of one's own, by a function of name and round."""
    frozen = Sharing(lambda name, number: "frozen" if name == A else "shared")
    setup, state = prepared(Algorithm(sharing=frozen))
    assert play(setup, state).clients["uplink_bytes"].tolist() == [16] * 4
    assert state.adapter[:6].equal(INITIAL[:6])
