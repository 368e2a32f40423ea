"""LoRA-A2: each client sends the ranks of all layers that change its B A most, and their mean is exact."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flora_hpc import lowrank, trainer
from flora_hpc import round as rounds
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.meter import Meter
from flora_hpc.methods._lora import layers_of
from flora_hpc.methods._method import Method
from flora_hpc.records import hdf5file
from flora_hpc.roles import roles_of
from flora_hpc.setup import Site
from tests.conftest import ROOT, refusal
from tests.pure_rounds import build, whole
from tests.test_algorithm_rounds import INITIAL, prepared

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
SHAPES = {"p.lora_A": (3, 5), "p.lora_B": (4, 3), "q.lora_A": (3, 2), "q.lora_B": (7, 3), "bias": (2,)}


def method(shapes: dict[str, tuple[int, ...]] = SHAPES) -> Method:
    def unused(*arguments: object) -> torch.Tensor:
        raise NotImplementedError

    layers = layers_of({name: shape for name, shape in shapes.items() if name != "bias"}, 2.0)
    return Method(shapes, lambda rng: {}, unused, unused, how="", layers=layers)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_the_mask_is_that_of_the_norms_of_outer_products(number: int, share: float) -> None:
    """Against NumPy: round 1 sends B, round 2 sends A."""
    algorithm = build("lora_a2", tuple(SHAPES))
    assert algorithm.sharing is not None
    some = method()
    roles = roles_of(algorithm.sharing, some)[number - 1]
    generator = torch.Generator().manual_seed(number)
    adapter = torch.randn(some.num_params, generator=generator)
    updates = torch.randn(6, len(roles.sent), generator=generator)
    mask, count = lowrank.important(lowrank.places(some, roles), adapter, updates, share)
    assert count == max(1, round(share * 6))
    start = {name: part.double().numpy() for name, part in some.unpack(adapter).items()}
    whole_mask = some.unpack(roles.sent.put(torch.zeros(6, some.num_params), mask.float()))
    whole_updates = some.unpack(roles.sent.put(torch.zeros(6, some.num_params), updates))
    for client in range(6):
        scores = {}
        for layer in "pq":
            for rank in range(3):
                if number == 1:
                    change = np.outer(whole_updates[f"{layer}.lora_B"][client][:, rank].double(), start[f"{layer}.lora_A"][rank])
                else:
                    change = np.outer(start[f"{layer}.lora_B"][:, rank], whole_updates[f"{layer}.lora_A"][client][rank].double())
                scores[layer, rank] = float(np.linalg.norm(change))
        best = set(sorted(scores, key=lambda key: -scores[key])[:count])
        for layer, rank in scores:
            part = whole_mask[f"{layer}.lora_{'BA'[number - 1]}"][client]
            numbers = part[:, rank] if number == 1 else part[rank]
            assert set(numbers.tolist()) == {float((layer, rank) in best)}
        assert whole_mask["bias"][client].tolist() == [1, 1]


def test_of_equal_ranks_the_first_are_sent() -> None:
    """In round 2 of a run whose B is still zero, no rank is more important than another."""
    sharing = build("lora_a2", tuple(SHAPES)).sharing
    assert sharing is not None
    some = method()
    roles = roles_of(sharing, some)[1]
    layers = lowrank.places(some, roles)
    mask, count = lowrank.important(layers, torch.zeros(some.num_params), torch.ones(1, len(roles.sent)), 0.5)
    assert count == 3
    assert mask[0].tolist() == [True] * 15 + [False] * 6 + [True] * 2


def test_a_clients_mask_is_its_own() -> None:
    sharing = build("lora_a2", tuple(SHAPES)).sharing
    assert sharing is not None
    some = method()
    roles = roles_of(sharing, some)[0]
    layers, adapter = lowrank.places(some, roles), torch.randn(some.num_params, generator=torch.Generator().manual_seed(0))
    updates = torch.randn(5, len(roles.sent), generator=torch.Generator().manual_seed(1))
    together, _ = lowrank.important(layers, adapter, updates, 0.4)
    for client in range(5):
        assert lowrank.important(layers, adapter, updates[client : client + 1], 0.4)[0].equal(together[client : client + 1])


@pytest.mark.parametrize("over", ["clients", "senders"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_round_adds_the_mean_of_what_was_sent(number: int, over: str) -> None:
    """A layer of rank 2, of which each client sends one rank; against NumPy in float64. The mean of products is exact."""
    setup, state = prepared(whole(build("lora_a2", ("layer.lora_A", "layer.lora_B"), fraction=0.5, over=over)))
    roles = setup.federation.roles_in(number)
    task = rounds.prepare(setup, Site(Meter(Serial())), state, number, None).task
    total, weights, products, norm = np.zeros(len(roles.sent)), np.zeros(len(roles.sent)), np.zeros((2, 3)), 0
    before = INITIAL.double().numpy()
    for client in range(4):
        batches = trainer.make_batches(np.array([client]), setup.holdings, setup.client, setup.seed, number)
        update = trainer.train(task, trainer.Start(roles.trained.take(INITIAL)), batches).updates[0].double().numpy()
        a, b = before[:6].reshape(2, 3), before[6:].reshape(2, 2)
        change = update.reshape(2, 2) if number == 1 else update.reshape(2, 3)
        scores = [
            np.linalg.norm(np.outer(change[:, rank], a[rank]) if number == 1 else np.outer(b[:, rank], change[rank]))
            for rank in range(2)
        ]
        mask = np.zeros_like(change)
        mask[:, np.argmax(scores)] = number == 1
        if number == 2:
            mask[np.argmax(scores)] = 1
        size = int(setup.holdings.sizes(np.array([client]))[0])
        total, weights, norm = total + size * (mask * change).ravel(), weights + size * mask.ravel(), norm + size
        products += size * ((b + mask * change) @ a if number == 1 else b @ (a + mask * change))
    divisor = norm if over == "clients" else np.maximum(weights, 1)
    expected = before.copy()
    expected[6 * (number == 1) : 6 + 4 * (number == 1)] += total / divisor
    rounds.play(setup, Site(Meter(Serial())), state, number)
    after = state.adapter.double().numpy()
    np.testing.assert_allclose(after, expected, rtol=0, atol=2e-7)  # of a float32 adapter
    if over == "clients":
        np.testing.assert_allclose(expected[6:].reshape(2, 2) @ expected[:6].reshape(2, 3), products / norm, rtol=0, atol=1e-9)


def test_a_runs_bytes_are_those_of_the_plan(tmp_path: Path, invoke: Callable[..., str]) -> None:
    """Four layers of flora-tiny, 128 x 128, of rank 4: a quarter of 16 ranks, 128 numbers and a place each."""
    few = ["-s", "algorithm=lora_a2", "-s", "rounds=2", "-s", "client.lr=0.002"]
    assert "a client sends 2,064 bytes per update and receives 8,192" in " ".join(
        invoke("plan", QUICKSTART, *few).replace("│", " ").split()
    )
    invoke("run", QUICKSTART, *few, "--out", tmp_path / "run")
    _, tables = hdf5file.read(tmp_path / "run")
    assert set(tables["clients"]["uplink_bytes"]) == {4 * (4 * 128 + 4)}
    assert set(tables["clients"]["downlink_bytes"]) == {4 * 4 * 4 * 128}
    assert tables["rounds"]["test_accuracy"][-1] > tables["rounds"]["test_accuracy"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["method.name=feddylora"], "the combine part would choose ranks of the padding; take fedavg, or method.name: flora"),
        (["method.name=fedlc"], "lora_a2 treats the A and B of LoRA adapters differently"),
        (["method.name=fed_sb"], "this method has none; set method.name: flora"),
        (["transform={name: top_k}"], "leave one of the two out"),
        (["sharing=ffa_lora"], "the sharing and combine parts of lora_a2 go together only"),
        (["server=fedadam"], "other tensors are trained from round to round, but the server part remembers"),
        (["evaluate.cross_term=true"], "averages other numbers than the updates of these factors; leave it out"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(options: list[str], message: str) -> None:
    changes = (word for option in options for word in ("-s", option))
    assert message in refusal("plan", QUICKSTART, "-s", "algorithm=lora_a2", *changes)


def test_a_method_without_layers_and_a_transform_without_memory_are_refused() -> None:
    """Which only users' own files have."""
    from flora_hpc.misfits import misfit_of_sent_ranks

    setup, _ = prepared(whole(build("lora_a2", ("layer.lora_A", "layer.lora_B"))))
    assert misfit_of_sent_ranks(setup.federation, setup.method) is None
    fault = misfit_of_sent_ranks(setup.federation, replace(setup.method, layers=()))
    assert fault is not None
    assert fault.endswith("set method.name: flora, or take another algorithm")
    encoding = replace(setup.federation, transform=build("top_k").transform)
    assert "leave it out, or take algorithm.name: rolora" in str(misfit_of_sent_ranks(encoding, setup.method))
