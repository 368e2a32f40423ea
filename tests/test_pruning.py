"""Clients that drop ranks: sizes of tails, their penalty, who drops what, and what is sent, received and remembered then."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flora_hpc import pruning, trainer
from flora_hpc import round as rounds
from flora_hpc.algorithms._algorithm import LocalStep, Pruning
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.meter import Meter
from flora_hpc.config import EvaluateConfig
from flora_hpc.data.images import Ints
from flora_hpc.memories import Memories
from flora_hpc.methods import _lora
from flora_hpc.methods._method import Method, Portions
from flora_hpc.personal import Personal
from flora_hpc.records import hdf5file
from flora_hpc.setup import Setup
from tests.conftest import ROOT, refusal
from tests.pure_rounds import build, whole
from tests.test_algorithm_rounds import A, B, memories_of, prepared
from tests.test_round import play

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
SHAPES = {A: (2, 3), B: (2, 2)}
#              A, its second row of length 5        B, its second column of length 10
ADAPTER = [1.0, 2.0, 2.0, 3.0, 0.0, 4.0, 1.0, 6.0, 0.0, 8.0]
TAIL = torch.tensor([False] * 3 + [True] * 3 + [False, True] * 2)


def with_ranks(method: Method, ranks: Ints) -> Method:
    """The method, whose clients have these ranks."""

    def of_ranks(some: Ints) -> torch.Tensor:
        return _lora.mask_of_ranks(method.shapes, some)

    portions = Portions(
        lambda clients: of_ranks(ranks[clients]),
        lambda clients: 5 * ranks[clients],
        lambda clients: ranks[clients],
        of_ranks=of_ranks,
    )
    return replace(method, portions=portions)


def four(
    ranks: tuple[int, ...] = (2, 2, 2, 2), client: Mapping[str, Any] | None = None, **options: Any
) -> tuple[Setup, rounds.State]:
    """Four clients of these ranks, with one layer."""
    setup, state = prepared(whole(build("hetlora", (A, B), 4, **{"prune": 0.5} | options)))
    setup = replace(setup, method=with_ranks(setup.method, np.array(ranks)), client=setup.client.model_copy(update=client or {}))
    state.adapter = torch.tensor(ADAPTER)
    memory = setup.federation.memory(state.adapter, setup.client)
    state.memories = Memories(Meter(Serial()), memory, 2**30) if memory else None
    return setup, state


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[int, list[float]], dict[int, trainer.Start]]:
    """Instead of training: client -> what it adds to its numbers where it holds them; and client -> its last start."""
    updates: dict[int, list[float]] = {}
    starts: dict[int, trainer.Start] = {}

    def train(task: trainer.Task, start: trainer.Start, batches: trainer.Batches, first: object = None) -> trainer.Trained:
        clients = batches.origin[2].tolist()
        starts.update(
            {client: start._replace(mask=None if start.mask is None else start.mask[i]) for i, client in enumerate(clients)}
        )
        mask = torch.ones(len(clients), 10, dtype=torch.bool) if start.mask is None else start.mask
        own = torch.tensor([updates.get(client, [0.0] * 10) for client in clients])
        state = [torch.ones(len(clients), width) for width in (10, 10, 1)] if start.optimizer else []
        return trainer.Trained(
            torch.where(mask, own, -start.params), torch.ones(len(clients)).double(), batches.num_steps, tuple(state)
        )

    monkeypatch.setattr(trainer, "train", train)
    return updates, starts


def rows_of(record: Any) -> dict[int, Any]:
    return {int(row["client"]): row for row in record.clients}


def half_of_tail() -> list[float]:
    """An update that halves the second column of B."""
    return [0.0] * 7 + [-3.0, 0.0, -4.0]


# --- facts by hand


@pytest.mark.parametrize(
    ("share", "least", "ranks", "left"),
    [
        (0.99, 1, [8, 2, 1, 101], [7, 1, 1, 99]),
        (0.5, 1, [8, 5, 1], [4, 2, 1]),
        (0.5, 3, [8, 5, 2], [4, 3, 2]),
        (0.7, 1, [10], [7]),  # 0.7 * 10 is 7 in float64, 0.29 * 100 is a little less than 29
        (0.29, 1, [100], [29]),
    ],
)
def test_a_share_of_the_ranks_is_left(share: float, least: int, ranks: list[int], left: list[int]) -> None:
    assert pruning.ranks_left(Pruning(share, 0.0, least), np.array(ranks)).tolist() == left


def test_the_size_of_a_tail_is_the_product_of_the_norms_of_its_factors() -> None:
    method = four()[0].method
    params = torch.tensor([ADAPTER, ADAPTER, ADAPTER])
    everything, nothing = torch.ones_like(TAIL), torch.zeros_like(TAIL)
    sizes = pruning.tail_sizes(method, params, torch.stack([TAIL, everything, nothing]))
    assert sizes.tolist() == pytest.approx([50, (34 * 101) ** 0.5, 0], rel=1e-12)


def layered() -> Method:
    """Two layers of rank 3."""
    shapes = {"p.lora_A": (3, 5), "p.lora_B": (4, 3), "q.lora_A": (3, 2), "q.lora_B": (7, 3)}
    method = replace(four()[0].method, shapes=shapes, layers=_lora.layers_of(shapes, 1.0))
    return with_ranks(method, np.array([3]))


def step(params: torch.Tensor) -> LocalStep:
    return LocalStep(params, params, {}, {})


def test_the_penalty_is_the_gradient_of_the_size() -> None:
    """Against autograd, in float64; the third client has no tail, and the second one of two ranks."""
    method, generator = layered(), torch.Generator().manual_seed(0)
    params = torch.randn(3, method.num_params, generator=generator, dtype=torch.float64)
    gradient = torch.randn(3, method.num_params, generator=generator, dtype=torch.float64)
    tail = ~pruning.mask_of(method, np.array([2, 1, 3]))
    leaf = params.clone().requires_grad_()
    size = torch.zeros(3, dtype=torch.float64)
    for layer in "pq":
        a, b = method.unpack(leaf)[f"{layer}.lora_A"], method.unpack(leaf)[f"{layer}.lora_B"]
        size = size + torch.stack(
            [a[i, left:].norm() * b[i, :, left:].norm() if left < 3 else 0 * a.sum() for i, left in enumerate((2, 1, 3))]
        )
    (expected,) = torch.autograd.grad(0.3 * size.sum(), leaf)
    actual = pruning.with_penalty(None, method, tail, 0.3)(gradient, step(params))
    torch.testing.assert_close(actual - gradient, expected, rtol=0, atol=1e-9)
    assert (actual - gradient)[2].count_nonzero() == 0
    torch.testing.assert_close(pruning.tail_sizes(method, params, tail), size.detach(), rtol=0, atol=1e-9)


def test_the_algorithms_own_change_of_gradients_comes_first() -> None:
    method, params = four()[0].method, torch.tensor([ADAPTER])
    actual = pruning.with_penalty(lambda gradient, step: -gradient, method, TAIL[None], 1.0)(torch.ones(1, 10), step(params))
    # |B| / |A| = 2 times the tail of A, half of the tail of B
    assert actual[0].tolist() == [-1, -1, -1, 5, -1, 7, -1, 2, -1, 3]


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_a_factor_that_is_zero_has_no_gradient_of_its_own(factor: str) -> None:
    """As B at the start. The other factor has none either, since its gradient is the norm of this one."""
    method = layered()
    params = torch.ones(1, method.num_params)
    for name, numbers in method.unpack(params).items():
        if name.endswith(factor):
            numbers.zero_()
    actual = pruning.with_penalty(None, method, torch.ones_like(params, dtype=torch.bool), 0.3)(
        torch.zeros_like(params), step(params)
    )
    assert actual.tolist() == torch.zeros_like(params).tolist()


def test_a_clients_penalty_and_size_are_its_own() -> None:
    method, generator = layered(), torch.Generator().manual_seed(0)
    params, tail = torch.randn(5, method.num_params, generator=generator), ~pruning.mask_of(method, np.array([2, 1, 3, 2, 1]))
    together = pruning.with_penalty(None, method, tail, 0.3)(torch.zeros_like(params), step(params))
    sizes = pruning.tail_sizes(method, params, tail)
    for i in range(5):
        alone = pruning.with_penalty(None, method, tail[i : i + 1], 0.3)(torch.zeros(1, method.num_params), step(params[i : i + 1]))
        assert alone.equal(together[i : i + 1])
        assert pruning.tail_sizes(method, params[i : i + 1], tail[i : i + 1]).equal(sizes[i : i + 1])


def test_what_clients_hold_is_asked_in_any_order() -> None:
    method = with_ranks(four()[0].method, np.array([2, 1, 2, 2]))
    some = pruning.holding(method, np.array([3, 1, 0]), {"pruned_ranks": torch.tensor([[0.0], [0.0], [1.0]])}).portions
    assert some is not None
    assert some.ranks is not None
    assert some.ranks(np.array([0, 3])).tolist() == [1, 2]
    assert some.sizes(np.array([1, 3, 0])).tolist() == [5, 10, 5]
    assert some.mask(np.array([0])).tolist() == [(~TAIL).tolist()]
    assert pruning.holding(method, np.array([0]), {"private": torch.ones(1, 1)}) is method


# --- rounds


def test_a_client_whose_tail_shrinks_drops_it(moves: Any) -> None:
    """Tails of 50: of 25 after client 0, 100 after client 1, the same after client 2; client 3 is rejected."""
    updates, starts = moves
    updates |= {0: half_of_tail(), 1: [0.0] * 3 + [3.0, 0.0, 4.0] + [0.0] * 4, 3: [float("nan"), *half_of_tail()[1:]]}
    setup, state = four()
    rows = rows_of(play(setup, state))
    assert memories_of(setup, state)["pruned_ranks"].tolist() == [[1], [0], [0], [0]]
    assert [rows[i]["adapter_rank"] for i in range(4)] == [1, 2, 2, 2]
    assert [rows[i]["uplink_bytes"] for i in range(3)] == [20, 40, 40]
    assert [rows[i]["downlink_bytes"] for i in range(4)] == [40] * 4
    assert [rows[i]["update_norm"] for i in range(3)] == [0, 5, 0]
    models = [torch.tensor(ADAPTER), torch.tensor(ADAPTER), torch.tensor(ADAPTER)]
    models[0] = torch.where(TAIL, 0.0, models[0])
    models[1] = models[1] + torch.tensor(updates[1])
    norms = [(model[6:].view(2, 2) @ model[:6].view(2, 3)).norm() for model in models]
    expected = sum(norm * model for norm, model in zip(norms, models, strict=True)) / sum(norms)
    torch.testing.assert_close(state.adapter, expected, rtol=1e-6, atol=1e-6)
    updates.clear()
    rows = rows_of(play(setup, state, 2))
    mask = starts[0].mask
    assert mask is not None
    assert mask.tolist() == (~TAIL).tolist()
    assert [starts[i].mask.all() for i in (1, 2, 3)] == [True] * 3
    assert [rows[i]["downlink_bytes"] for i in range(4)] == [20, 40, 40, 40]
    assert [rows[i]["uplink_bytes"] for i in range(4)] == [20, 40, 40, 40]
    assert memories_of(setup, state)["pruned_ranks"].tolist() == [[1], [0], [0], [0]]


def test_a_client_that_is_too_large_sends_less_and_keeps_its_rank(moves: Any) -> None:
    updates, _ = moves
    updates[1] = [1e30, *half_of_tail()[1:]]
    setup, state = four()
    row = rows_of(play(setup, state))[1]
    assert (row["weight"], row["uplink_bytes"], row["adapter_rank"]) == (0, 20, 2)
    assert memories_of(setup, state)["pruned_ranks"].tolist() == [[0]] * 4


def test_the_least_rank_stays(moves: Any) -> None:
    updates, _ = moves
    updates |= dict.fromkeys(range(4), half_of_tail())
    setup, state = four(ranks=(2, 1, 2, 1), least_rank=2)
    play(setup, state)
    assert memories_of(setup, state)["pruned_ranks"].tolist() == [[0]] * 4
    setup, state = four(ranks=(2, 1, 2, 1))
    rows = rows_of(play(setup, state))
    assert memories_of(setup, state)["pruned_ranks"].tolist() == [[1], [0], [1], [0]]
    assert [rows[i]["adapter_rank"] for i in range(4)] == [1] * 4


def test_moments_of_an_optimizer_go_with_their_ranks(moves: Any) -> None:
    """Else they would move numbers that the client does not hold."""
    updates, _ = moves
    updates[2] = half_of_tail()
    setup, state = four(client={"optimizer": "adam", "optimizer_state": "keep"})
    play(setup, state)
    memory = memories_of(setup, state)
    for name in ("optimizer.0", "optimizer.1"):
        assert memory[name][2].tolist() == (~TAIL).float().tolist()
        assert memory[name][[0, 1, 3]].tolist() == torch.ones(3, 10).tolist()
    assert memory["optimizer.2"].tolist() == [[1]] * 4


def test_a_large_penalty_makes_all_clients_drop_ranks() -> None:
    """By training. Without it, one of the four clients needs its tail."""
    ranks = []
    for penalty in (0.0, 0.5):
        setup, state = four(prune_penalty=penalty)
        state.adapter *= 0.1
        ranks.append(sorted(play(setup, state).clients["adapter_rank"].tolist()))
    assert ranks == [[1, 1, 1, 2], [1, 1, 1, 1]]


def test_without_a_tail_pruning_changes_no_bit() -> None:
    """Nor does the option that is off, which leaves the local part to FedAvg."""
    adapters = []
    for options in ({"prune": None}, {"least_rank": 2, "prune_penalty": 3.0}):
        setup, state = four(ranks=(2, 1, 2, 1), **options)
        for number in (1, 2, 3):
            play(setup, state, number)
        adapters.append(state.adapter)
    assert adapters[0].equal(adapters[1])
    assert build("hetlora", (A, B)).local is None


# --- own models


def test_a_clients_own_model_lacks_what_it_dropped() -> None:
    setup, state = four(ranks=(2, 2, 1, 2))
    personal = Personal(setup, 1, state.adapter, np.array([1, 1]))
    models = personal.models(np.array([3, 0, 2]), {"pruned_ranks": torch.tensor([[0.0], [1.0], [0.0]])})
    assert models is not None
    without = torch.where(TAIL, 0.0, state.adapter)
    assert models.tolist() == torch.stack([state.adapter, without, without]).tolist()


def test_an_own_model_is_tuned_with_the_ranks_that_are_left() -> None:
    """As one of a client that had these ranks from the beginning."""
    models = []
    for ranks, pruned in (((2, 2, 2, 2), 1.0), ((1, 2, 2, 2), 0.0)):
        setup, state = four(ranks=ranks)
        setup = replace(setup, evaluate=EvaluateConfig(personal=True, fine_tune_epochs=2))
        personal = Personal(setup, setup.rounds, state.adapter, np.array([1, 1]))
        models.append(personal.models(np.array([0]), {"pruned_ranks": torch.tensor([[pruned]])}))
    assert models[0] is not None
    assert models[1] is not None
    assert models[0].equal(models[1])
    assert not models[0].equal(torch.where(TAIL, 0.0, state.adapter)[None])


# --- runs


RUN = (
    *("-s", "method={name: feddylora, by: divergence, min_rank: 2}", "-s", "client.lr=0.002", "-s", "evaluate.personal=true"),
    *("-s", "algorithm={name: hetlora, prune: 0.8, prune_penalty: 1.0, least_rank: 2}", "-s", "rounds=4"),
)


def test_bytes_and_ranks_of_a_run_are_those_of_its_clients(tmp_path: Path, invoke: Callable[..., str]) -> None:
    """A rank has 1,024 numbers: four layers of flora-tiny, 128 x 128."""
    plan = " ".join(invoke("plan", QUICKSTART, *RUN).replace("│", " ").split())
    assert "a client sends 8,192 to 32,768 bytes per update and receives 8,192 to 32,768; less once it has dropped ranks" in plan
    assert "4 bytes (pruned_ranks) of each client that has trained" in plan
    invoke("run", QUICKSTART, *RUN, "--out", tmp_path / "run")
    _, tables = hdf5file.read(tmp_path / "run")
    clients, number_bytes = tables["clients"], 4 * 1024
    assert (clients["uplink_bytes"] == number_bytes * clients["adapter_rank"]).all()
    by_round = [np.sort(clients[clients["round"] == number], order="client") for number in (1, 2, 3, 4)]
    before, dropped = by_round[0]["downlink_bytes"] // number_bytes, []
    for table in by_round:
        after = table["adapter_rank"]
        assert (table["downlink_bytes"] == number_bytes * before).all()
        assert ((after == before) | (after == np.minimum(before, np.maximum(2, before * 8 // 10)))).all()
        dropped.append(int((after < before).sum()))
        before = after
    assert dropped[0] == 0  # B is zero at first, and what is zero does not shrink
    assert sum(dropped) > 0
    assert (tables["rounds"]["uplink_bytes"][1:] == [table["uplink_bytes"].sum() for table in by_round]).all()
    assert np.isfinite(clients["personal_accuracy"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["method.name=flora"],
            "algorithm.prune: each client drops ranks of its own, and method flora has no ranks of clients; leave it out",
        ),
        (["evaluate.per_rank=true"], "evaluate.per_rank: the ranks of clients change from round to round with algorithm.prune"),
        (
            ["algorithm=fedavg", "local={name: hetlora, prune: 0.9}", "sharing=ffa_lora"],
            "local.prune: clients drop ranks of both A and B, but do not send all of them; leave it or the sharing part out",
        ),
        (["local=hetlora"], "hetlora has no local part of its own"),
        (["algorithm.prune=1.0"], "algorithm.prune: must be less than 1.0, not 1.0"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(options: list[str], message: str) -> None:
    changes = (word for option in options for word in ("-s", option))
    base = ("-s", "method.name=feddylora", "-s", "algorithm={name: hetlora, prune: 0.9}")
    assert message in refusal("plan", QUICKSTART, *base, *changes)


def test_the_local_part_goes_with_other_means(tmp_path: Path, invoke: Callable[..., str]) -> None:
    """Means over holders count a client among the holders of what it still holds."""
    few = ("-s", "rounds=3", "-s", "algorithm=holders_only", "-s", "local={name: hetlora, prune: 0.8, prune_penalty: 1.0}")
    invoke("run", QUICKSTART, *RUN[:2], "-s", "client.lr=0.002", *few, "--out", tmp_path / "run")
    _, tables = hdf5file.read(tmp_path / "run")
    assert (np.diff(tables["rounds"]["uplink_bytes"][1:]) <= 0).all()
    assert tables["rounds"]["uplink_bytes"][-1] < tables["rounds"]["uplink_bytes"][1]
