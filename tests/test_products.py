"""Means of products of low-rank adapters: exact, in any order, and what follows from them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flora_hpc import lowrank, products
from flora_hpc.algorithms._algorithm import Algorithm, Combine, LayerMeans, Now
from flora_hpc.algorithms.fedavg import mean
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.communicator import AgreedError
from flora_hpc.comm.meter import Meter
from flora_hpc.config import EvaluateConfig
from flora_hpc.data.images import Ints
from flora_hpc.exact import ExactSums
from flora_hpc.methods._lora import layers_of
from flora_hpc.methods._method import Method, Portions
from flora_hpc.products import Combined, Sums
from flora_hpc.productsums import ProductSums
from flora_hpc.roles import Roles, roles_of
from flora_hpc.stacks import Stacks
from flora_hpc.svd import truncated_svd
from tests import test_algorithm_rounds as low_rank
from tests.pure_rounds import build, part, whole
from tests.test_round import algorithm, play

CLOSE = {"rtol": 0, "atol": 1e-9}
A, B = "layer.lora_A", "layer.lora_B"
NAMES = (A, B)
FACTORS = ((1, 2, 0, 1, -1), (0, 1, 2, 2, 1))  # of two clients: A, then B
WEIGHTS = torch.tensor([1, 3])
WAYS = [ProductSums, Stacks]
both_ways = pytest.mark.parametrize("way", WAYS)


def double(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def method(rank: int, out: int, width: int, scale: float = 1.0) -> Method:
    """One layer."""
    shapes = {A: (rank, width), B: (out, rank)}

    def nothing(*arguments: Any) -> Any:
        raise AssertionError

    return Method(shapes, nothing, nothing, nothing, how="one layer", layers=layers_of(shapes, scale))


def roles(chosen: Method, name: str = "fedavg") -> Roles:
    sharing = whole(build(name, NAMES)).sharing
    assert sharing is not None
    return roles_of(sharing, chosen)[0]


def added(
    sums: Sums, clients: Ints, updates: torch.Tensor, weights: torch.Tensor, parts: Sequence[slice] = (slice(None),)
) -> ExactSums:
    """Add updates (num_clients, num_params) of `clients` to the sums, in `parts`. Returns the sums of rows with them."""
    rows = ExactSums({"update": updates.shape[1]})
    for some in parts:
        fits = lowrank.fits(sums.places, updates[some], weights[some])
        accepted = rows.add({"update": updates[some]}, {"update": weights[some]}) & fits
        sums.add(clients[some], updates[some], weights[some], accepted)
    return rows


def summed(
    way: type[Sums], chosen: Method, updates: torch.Tensor, weights: torch.Tensor, name: str = "fedavg"
) -> tuple[Sums, ExactSums]:
    """The sums of updates (num_clients, num_params) on one rank."""
    sums = way(lowrank.places(chosen, roles(chosen, name)))
    rows = added(sums, np.arange(len(updates)), updates, weights)
    sums.collect(Meter(Serial()))
    return sums, rows


def combined(sums: Sums, rows: ExactSums, adapter: torch.Tensor, name: str = "flexlora", **options: Any) -> Combined:
    return products.combine(Meter(Serial()), combine_of(name, **options), sums, rows, adapter)


def combine_of(name: str, **options: Any) -> Combine:
    result = part(whole(build(name, NAMES, **options)).combine, Combine)
    assert isinstance(result, Combine)
    return result


def factors(means: LayerMeans, name: str, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    rule = combine_of(name, **options).factors
    assert rule is not None
    return rule(means)


# --- numbers worked out by hand: two clients of weights 1 and 3


@pytest.fixture(params=WAYS)
def means(request: pytest.FixtureRequest) -> LayerMeans:
    sums, rows = summed(request.param, method(1, 2, 3), double(FACTORS), WEIGHTS)
    result, cross = sums.means(0, torch.zeros(5), rows.precise_mean("update"))
    torch.testing.assert_close(cross, double([[-0.1875, -0.1875, 0.375], [-0.375, -0.375, 0.75]]), **CLOSE)
    return result


def test_the_mean_of_products_is_not_the_product_of_means(means: LayerMeans) -> None:
    torch.testing.assert_close(means.product, double([[0.25, 2, 3], [-0.25, 0.25, 1.5]]), **CLOSE)
    torch.testing.assert_close(means.b @ means.a, double([[0.4375, 2.1875, 2.625], [0.125, 0.625, 0.75]]), **CLOSE)
    stack_a, stack_b = double([[0.25, 0.5, 0], [0, 0.75, 1.5]]), double([[1, 2], [-1, 1]])
    torch.testing.assert_close(stack_b @ stack_a, means.product, **CLOSE)


@both_ways
@pytest.mark.parametrize("scale", [1.0, 32.0])
def test_the_cross_term_is_relative(way: type[Sums], scale: float) -> None:
    sums, rows = summed(way, method(1, 2, 3, scale), double(FACTORS), WEIGHTS)
    assert combined(sums, rows, torch.zeros(5), "fedavg").cross_term == pytest.approx(1.0269797953 / 3.9290584114, abs=1e-9)


def test_hetlora_weighs_clients_by_the_norm_of_their_product() -> None:
    """The first client has rank 1 of 2, padded with zeros; the norms are root 10 and root 35."""
    adapters = torch.tensor([[1.0, 2, 0, 0, 0, 0, 1, 0, -1, 0], [0, 1, 2, 1, 0, 1, 2, 1, 1, 0]])
    weights = lowrank.norms(method(2, 2, 3), adapters)
    torch.testing.assert_close(weights, torch.tensor([[10.0], [35.0]]).sqrt().expand(2, 10))
    means = {"update": (adapters * weights).mean(0).double(), "norms": weights.mean(0).double()}
    direction = combine_of("hetlora").finish(means, Now(1, 2, 2, 2, {}))
    expected = double([[0.3483314774, 1.348331477, 1.303337045], [0.6516685226, 0, 0.6516685226]])
    torch.testing.assert_close(direction[:6].view(2, 3), expected, rtol=0, atol=1e-6)
    b = double([[2 - 0.3483314774, 0.6516685226], [1 - 2 * 0.3483314774, 0]])
    b[0, 0] = 0.3483314774 + 2 * 0.6516685226
    torch.testing.assert_close(direction[6:].view(2, 2), b, rtol=0, atol=1e-6)


def test_a_layer_whose_products_are_all_zero_stays() -> None:
    adapters = torch.tensor([[1.0, 2, 0, 0], [3.0, 4, 0, 0]])
    weights = lowrank.norms(method(1, 2, 2), adapters)
    means = {"update": (adapters * weights).mean(0), "norms": weights.mean(0)}
    assert combine_of("hetlora").finish(means, Now(1, 2, 2, 2, {})).tolist() == [0] * 4


def test_numbers_outside_of_layers_count_as_of_norm_1() -> None:
    chosen = method(1, 1, 1)
    chosen = replace(chosen, shapes={"bias": (2,), **chosen.shapes})
    assert lowrank.norms(chosen, torch.tensor([[5.0, 6, 2, 3]])).tolist() == [[1, 1, 6, 6]]


def test_hlora_has_the_product_of_flexlora_and_orthonormal_columns_in_b(means: LayerMeans) -> None:
    a, b = factors(means, "hlora")
    other_a, other_b = factors(means, "flexlora")
    torch.testing.assert_close(b @ a, other_b @ other_a, **CLOSE)
    torch.testing.assert_close(b.T @ b, double([[1.0]]), **CLOSE)


@pytest.mark.parametrize("values", ["B", "A", "both"])
def test_flexlora_is_the_best_approximation_of_its_rank(means: LayerMeans, values: str) -> None:
    a, b = factors(means, "flexlora", values=values)
    expected = [[0.1319796507, 1.819303617, 3.110688631], [0.05163885324, 0.711827558, 1.217099703]]
    torch.testing.assert_close(b @ a, double(expected), **CLOSE)
    norms = {"B": (1.0, 3.8722557731), "A": (3.8722557731, 1.0), "both": (3.8722557731**0.5,) * 2}[values]
    assert (float(a.norm()), float(b.norm())) == pytest.approx(norms, abs=1e-9)
    assert b.flatten()[b.abs().argmax()] > 0


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        (0, (1.822580645, 0.6451612903)),
        (0.01, (1.822393822, 0.6447876448)),
        (1, (1.807692308, 0.6153846154)),
    ],
)
def test_lora_fair_corrects_b(means: LayerMeans, penalty: float, expected: tuple[float, float]) -> None:
    a, b = factors(means, "lora_fair", penalty=penalty)
    torch.testing.assert_close(a, double([[0.25, 1.25, 1.5]]), **CLOSE)
    torch.testing.assert_close(b, double(expected)[:, None], **CLOSE)


def test_lora_fair_takes_an_a_of_lower_rank() -> None:
    """As where no client of a round holds the last rank."""
    means = LayerMeans(double([[1.0, 2], [3, 4]]), double([[1.0, 1], [0, 0]]), double([[1.0, 0], [0, 0]]))
    a, b = factors(means, "lora_fair", penalty=0)
    torch.testing.assert_close(b @ a, double([[1.5, 1.5], [3.5, 3.5]]), **CLOSE)


def test_a_rank_that_one_of_two_clients_holds() -> None:
    """Padded with zeros it is halved; holders keep it."""
    combine = combine_of("holders_only")
    held, update = torch.tensor([[0.0, 0, 0], [1, 1, 1]]), torch.tensor([[0.0, 0, 0], [1, 0, 1]])
    sums = ExactSums({"update": 3, "held": 3})
    ones = torch.ones(2, dtype=torch.int64)
    sums.add({"update": update, "held": held}, {"update": ones, "held": ones})
    means = sums.means()
    assert means["update"].tolist() == [0.5, 0, 0.5]
    assert combine.finish(means, Now(1, 2, 2, 2, means)).tolist() == [1, 0, 1]
    nobody = means | {"held": torch.zeros(3), "update": torch.zeros(3)}
    assert combine.finish(nobody, Now(1, 2, 2, 2, means)).tolist() == [0, 0, 0]
    assert combine.finish({"update": update[1]}, Now(1, 2, 2, 2, {})).tolist() == [1, 0, 1], "all hold all"


# --- properties


def drawn(seed: int, chosen: Method, num_clients: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """An adapter, updates and weights."""
    generator = torch.Generator().manual_seed(seed)
    updates = 0.01 * torch.randn(num_clients, chosen.num_params, generator=generator)
    return torch.randn(chosen.num_params, generator=generator), updates, torch.randint(1, 900, (num_clients,), generator=generator)


@settings(deadline=None, max_examples=30)
@given(way=st.sampled_from(WAYS), seed=st.integers(0, 10**6), rank=st.integers(1, 4), cuts=st.lists(st.integers(0, 7), max_size=3))
def test_order_and_groups_of_clients_change_no_bit(way: type[Sums], seed: int, rank: int, cuts: list[int]) -> None:
    chosen = method(rank, 5, 4)
    adapter, updates, weights = drawn(seed, chosen)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    edges = [0, *sorted(cuts), 7]
    parts = [slice(start, stop) for start, stop in pairwise(edges) if stop > start]
    one = combined(*summed(way, chosen, updates, weights), adapter)
    sums = way(lowrank.places(chosen, roles(chosen)))
    rows = added(sums, order.numpy(), updates[order], weights[order], parts)
    sums.collect(Meter(Serial()))
    other = combined(sums, rows, adapter)
    assert one.cross_term == other.cross_term > 0
    assert one.put(adapter).equal(other.put(adapter))


@settings(deadline=None, max_examples=30)
@given(way=st.sampled_from(WAYS), seed=st.integers(0, 10**6), rank=st.integers(1, 4), tensor=st.sampled_from(NAMES))
def test_with_one_factor_in_common_products_and_factors_have_one_mean(way: type[Sums], seed: int, rank: int, tensor: str) -> None:
    """The cross term is zero, and flexlora at full rank has the product of FedAvg."""
    chosen = method(rank, 4, rank)  # the adapter has the full rank of B A
    adapter, updates, weights = drawn(seed, chosen)
    place = slice(0, rank * rank) if tensor == A else slice(rank * rank, None)
    updates[:, place] = updates[:1, place]
    sums, rows = summed(way, chosen, updates, weights)
    result = combined(sums, rows, adapter)
    assert result.cross_term < 1e-15
    plain = chosen.unpack(adapter.double() + rows.precise_mean("update"))
    exact = chosen.unpack(result.put(adapter).double())
    torch.testing.assert_close(exact[B] @ exact[A], plain[B] @ plain[A], rtol=1e-5, atol=1e-5)


@both_ways
@pytest.mark.parametrize("name", ["ffa_lora", "rolora"])
def test_a_frozen_factor_has_no_cross_term(way: type[Sums], name: str) -> None:
    chosen = method(2, 5, 4)
    adapter, updates, weights = drawn(0, chosen)
    result = combined(*summed(way, chosen, updates[:, 8:], weights, name), adapter, "fedavg")
    assert result.cross_term == 0
    assert result.put(adapter) is adapter


def test_equal_singular_values_give_the_same_product() -> None:
    """Any basis of their vectors is right, so factors may differ between libraries, and products may not."""
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(5, 5, generator=generator).double())[0] for _ in range(2))
    values = double([3, 2, 2, 1, 1])
    matrix = left * values @ right
    u, s, v = truncated_svd(matrix, 3)
    torch.testing.assert_close(u * s @ v, left[:, :3] * values[:3] @ right[:3], **CLOSE)
    u, s, v = truncated_svd(matrix, 2)  # cuts between two equal values
    assert float((matrix - u * s @ v).norm()) == pytest.approx((4 + 1 + 1) ** 0.5, abs=1e-9)
    torch.testing.assert_close(v @ v.T, torch.eye(2).double(), **CLOSE)
    for same in (torch.eye(4).double(), -torch.eye(4).double(), torch.zeros(4, 4).double()):
        u, s, v = truncated_svd(same, 4)
        torch.testing.assert_close(u * s @ v, same, **CLOSE)


@both_ways
def test_a_client_whose_product_is_too_large_is_left_out(way: type[Sums]) -> None:
    """Its factors alone could be added."""
    chosen = method(1, 2, 2)
    updates = torch.tensor([[1.0, 1, 1, 1], [1e5, 1, 1e5, 1], [torch.nan, 0, 0, 0]])
    weights = torch.tensor([2, 2, 2])
    sums, rows = way(lowrank.places(chosen, roles(chosen))), ExactSums({"update": 4})
    fits = lowrank.fits(sums.places, updates, weights)
    assert fits.tolist() == [True, False, False]
    accepted = rows.add({"update": updates}, {"update": weights})
    assert accepted.tolist() == [True, True, False]
    sums.add(np.arange(3), updates, weights, accepted & fits)
    sums.collect(Meter(Serial()))
    assert (sums.total(), rows.total("update")) == (2, 4)
    assert np.isnan(combined(sums, rows, torch.zeros(4), "fedavg").cross_term), "the means are those of other clients"


def test_factors_that_are_not_finite_end_the_run() -> None:
    chosen = method(1, 2, 2)
    sums, rows = summed(ProductSums, chosen, torch.ones(1, 4), torch.tensor([1]))
    broken = mean()._replace(factors=lambda means: (means.a / 0, means.b))
    with pytest.raises(AgreedError, match="a layer's next factors are not finite"):
        products.combine(Meter(Serial()), broken, sums, rows, torch.zeros(4))


# --- whole rounds


def mixed(chosen: Algorithm, cross_term: bool = False) -> tuple[Any, Any]:
    """Four clients, of which the last two hold the first rank only."""
    setup, state = low_rank.prepared(chosen)
    ranks = np.array([2, 2, 1, 1])

    def mask(clients: Any) -> torch.Tensor:
        held = np.arange(2) < ranks[clients][:, None]
        a, b = np.repeat(held, 3, 1), np.tile(held, (1, 2))
        return torch.from_numpy(np.concatenate([a, b], 1))

    portions = Portions(mask, lambda clients: 5 * ranks[clients])
    federation = replace(algorithm(chosen, setup.method), by_holder=part(whole(chosen).combine, Combine).by_holder)
    evaluate = EvaluateConfig(cross_term=cross_term)
    return replace(setup, method=replace(setup.method, portions=portions), federation=federation, evaluate=evaluate), state


def models(setup: Any, state: Any) -> list[dict[str, torch.Tensor]]:
    """What each client of `mixed` has after its local training, in float64."""
    start, result = state.adapter, []
    for client in range(4):
        held = setup.method.portions.mask(np.array([client]))[0]
        local = low_rank.pure_client(setup, client)
        params = start.double() * held
        for gradient in local.gradients(1):
            params = params - setup.client.lr * gradient(params) * held
        result.append(setup.method.unpack(params))
    return result


def test_clients_of_mixed_ranks_have_their_products_averaged() -> None:
    setup, state = mixed(low_rank.parts("flexlora"), cross_term=True)
    trained = models(setup, state)
    expected = sum(size * model[B] @ model[A] for size, model in zip((5, 3, 3, 1), trained, strict=True)) / 12
    record = play(setup, state)
    adapter = setup.method.unpack(state.adapter.double())
    torch.testing.assert_close(adapter[B] @ adapter[A], expected, rtol=1e-4, atol=1e-6)
    padded = {name: sum(n * model[name] for n, model in zip((5, 3, 3, 1), trained, strict=True)) / 12 for name in NAMES}
    cross = float((expected - padded[B] @ padded[A]).norm() / expected.norm())
    assert record.row["cross_term"][0] == pytest.approx(cross, rel=1e-4)
    assert record.clients["downlink_bytes"].tolist() == [40, 40, 20, 20]


def test_numbers_are_averaged_over_the_clients_that_hold_them() -> None:
    setup, state = mixed(low_rank.parts("holders_only"))
    trained = models(setup, state)
    play(setup, state)
    adapter = setup.method.unpack(state.adapter.double())
    everyone = sum(n * model[A][0] for n, model in zip((5, 3, 3, 1), trained, strict=True)) / 12
    holders = sum(n * model[A][1] for n, model in zip((5, 3), trained[:2], strict=True)) / 8
    torch.testing.assert_close(adapter[A], torch.stack([everyone, holders]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        adapter[B][:, 1], sum(n * m[B][:, 1] for n, m in zip((5, 3), trained[:2], strict=True)) / 8, rtol=1e-4, atol=1e-6
    )


def test_the_cross_term_is_measured_when_asked_and_changes_nothing() -> None:
    setup, state = low_rank.prepared(low_rank.parts("fedavg"))
    asked, other = replace(setup, evaluate=EvaluateConfig(cross_term=True)), replace(state)
    for number in (1, 2):
        assert np.isnan(play(setup, state, number).row["cross_term"][0])
        assert 0 < play(asked, other, number).row["cross_term"][0] < 1
        assert state.adapter.equal(other.adapter)
    assert np.isnan(play(asked, other, 0).row["cross_term"][0])


# --- merged weights


def merging(name: str, cross_term: bool = False) -> tuple[Any, Any, list[dict[str, torch.Tensor]]]:
    """Four clients, and the matrices that each round merges."""
    setup, state = low_rank.prepared(low_rank.parts(name))
    calls: list[dict[str, torch.Tensor]] = []
    base = low_rank.BASE.clone()
    added = torch.zeros(2, 3)

    def classes(tensors: Any, noise: Any) -> torch.Tensor:
        return base + added + tensors[B] @ tensors[A]

    def merge(matrices: Any) -> None:
        calls.append(dict(matrices))
        added.copy_(matrices[A])

    return replace(setup, method=replace(setup.method, merge=merge, classes=classes)), state, calls


@pytest.mark.parametrize("name", ["fedex_lora", "flora_stacking"])
def test_merged_weights_and_adapter_together_are_the_mean_of_products(name: str) -> None:
    setup, state, calls = merging(name)
    setup = replace(setup, method=replace(setup.method, portions=None))
    start = setup.method.unpack(state.adapter.double())
    plain = low_rank.pure(low_rank.parts("fedavg"), setup)
    clients = {client: low_rank.pure_client(setup, client) for client in range(4)}
    updates = torch.stack([plain.train(1, i, client, {})[0]["update"] for i, client in clients.items()])
    models = setup.method.unpack(updates + state.adapter.double())
    weights = double([5, 3, 3, 1])[:, None, None] / 12
    record = play(setup, state)
    adapter, expected = setup.method.unpack(state.adapter.double()), (weights * (models[B] @ models[A])).sum(0)
    torch.testing.assert_close(adapter[B] @ adapter[A] + state.merged[A], expected, rtol=1e-4, atol=1e-6)
    assert [list(call) for call in calls] == [[A]]
    assert calls[0][A].equal(state.merged[A])
    if name == "fedex_lora":
        torch.testing.assert_close(adapter[A], (weights * models[A]).sum(0), rtol=1e-4, atol=1e-6)
    else:
        assert adapter[B].abs().max() == 0
        fresh = setup.method.init(np.random.default_rng(0))[A]  # of this method, the same for each generator
        assert adapter[A].float().equal(fresh)
    assert record.clients["downlink_bytes"].tolist() == [40 * (name == "fedex_lora")] * 4, "nothing is merged before round 1"
    assert start[B].abs().max() == 0


def test_merged_weights_add_up_over_rounds_and_are_trained_upon() -> None:
    setup, state, calls = merging("flora_stacking")
    matrices = []
    for number in (1, 2, 3):
        play(setup, state, number)
        matrices.append(state.merged[A])
    assert [call[A].tolist() for call in calls] == [matrix.tolist() for matrix in matrices]
    changes = [matrices[0], matrices[1] - matrices[0], matrices[2] - matrices[1]]
    assert all(change.abs().max() > 1e-3 for change in changes)
    assert not torch.allclose(changes[0], changes[1]), "clients of round 2 begin where round 1 ended"


@both_ways
def test_one_client_leaves_nothing_to_merge(way: type[Sums]) -> None:
    """Its product is that of its factors."""
    chosen = method(2, 5, 4)
    adapter, updates, weights = drawn(3, chosen, 1)
    result = combined(*summed(way, chosen, updates, weights), adapter, "fedex_lora")
    assert float(result.rest[A].abs().max()) < 1e-6
    assert result.cross_term < 1e-15
