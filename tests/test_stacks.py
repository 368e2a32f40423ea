"""Stacks of factors give the means of exact sums, and the same bits however clients are dealt to ranks."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flora_hpc
from flora_hpc import lowrank, products, productsums, stacks
from flora_hpc.algorithms._algorithm import LayerMeans
from flora_hpc.algorithms._lora import svd_of_mean
from flora_hpc.comm.communicator import Communicator
from flora_hpc.comm.meter import Meter
from flora_hpc.data.images import Ints
from flora_hpc.methods._lora import layers_of
from flora_hpc.methods._method import Method
from flora_hpc.products import Combined, Sums
from flora_hpc.productsums import ProductSums
from flora_hpc.stacks import Sizes, Stacks
from flora_hpc.svd import truncated_svd
from tests.conftest import ROOT
from tests.test_products import WAYS, added, combine_of, drawn, method, roles, summed
from tests.threads import on_ranks

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
CLIENTS = np.array([4, 0, 7, 2**40, 1, 3, 9])


def of_layers(*shapes: tuple[int, int, int]) -> Method:
    """A method with layers of these ranks, outputs and inputs."""
    tensors: dict[str, tuple[int, ...]] = {}
    for number, (rank, out, width) in enumerate(shapes):
        tensors |= {f"{number}.lora_A": (rank, width), f"{number}.lora_B": (out, rank)}

    def nothing(*arguments: Any) -> Any:
        raise AssertionError

    return Method(tensors, nothing, nothing, nothing, how="layers", layers=layers_of(tensors, 1.0))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 4), out=st.integers(1, 40), width=st.integers(1, 40))
def test_stacks_and_exact_sums_have_the_same_means(seed: int, rank: int, out: int, width: int) -> None:
    chosen = method(rank, out, width)
    adapter, updates, weights = drawn(seed, chosen)
    expected, result = (summed(way, chosen, updates, weights) for way in (ProductSums, Stacks))
    mean_update = expected[1].precise_mean("update")
    exact, exact_cross = expected[0].means(0, adapter, mean_update)
    means, cross = result[0].means(0, adapter, mean_update)
    assert expected[0].total() == result[0].total() == int(weights.sum())
    assert float((means.product - exact.product).norm()) <= 1e-12 * float(exact.product.norm())
    assert float((cross - exact_cross).norm()) <= 1e-12 * float(updates.double().square().mean()) * (out * width) ** 0.5 * rank
    assert (means.a.equal(exact.a), means.b.equal(exact.b), exact.stacks) == (True, True, None)
    assert (means.stacks is not None) == (9 * rank < min(out, width)), "seven clients, and their means twice"


@pytest.mark.parametrize("name", ["flexlora", "hlora"])
def test_narrow_stacks_have_the_decomposition_of_their_product(name: str) -> None:
    """One client of rank 2 in a layer of 9 x 30; signs are those of the product's decomposition, too."""
    chosen = method(2, 9, 30)
    adapter, updates, weights = drawn(5, chosen, 1)
    sums, rows = summed(Stacks, chosen, updates, weights)
    means, _ = sums.means(0, adapter, rows.precise_mean("update"))
    assert means.stacks is not None
    assert [tuple(stack.shape) for stack in means.stacks] == [(9, 6), (6, 30)]
    torch.testing.assert_close(means.stacks[0] @ means.stacks[1], means.product, rtol=0, atol=1e-14)
    for part, expected in zip(svd_of_mean(means), truncated_svd(means.product, 2), strict=True):
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-12)
    rule = combine_of(name).factors
    assert rule is not None
    for factor, expected in zip(rule(means), rule(LayerMeans(means.product, means.a, means.b)), strict=True):
        torch.testing.assert_close(factor, expected, rtol=0, atol=1e-11)


def on_a_rank(comm: Communicator, way: type[Sums], chosen: Method, name: str, takers: Ints) -> Combined:
    """What follows from the sums where rank `takers[i]` trains the client CLIENTS[i]; one of them sends NaN."""
    adapter, updates, weights = drawn(1, chosen)
    updates[2, 3] = torch.nan
    own, meter, sums = np.flatnonzero(takers == comm.rank), Meter(comm), way(lowrank.places(chosen, roles(chosen)))
    rows = added(sums, CLIENTS[own], updates[own], weights[own], [slice(0, 2), slice(2, None)])
    meter.allreduce(rows.buffer)
    sums.collect(meter)
    return products.combine(meter, combine_of(name), sums, rows, adapter)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["flexlora", "lora_fair", "fedex_lora"])
def test_the_bits_do_not_depend_on_who_trains_whom(way: type[Sums], name: str) -> None:
    """Five ranks for four layers, of which one has seven clients' factors narrower than its product; a rank without a client."""
    chosen = of_layers((1, 24, 19), (2, 5, 30), (3, 11, 16), (1, 2, 2))
    (alone,) = on_ranks(1, lambda comm: on_a_rank(comm, way, chosen, name, np.zeros(7, int)))
    assert alone.cross_term > 0
    for num_ranks in (2, 3, 5):
        takers = np.random.default_rng(num_ranks).integers(0, num_ranks - 1, len(CLIENTS))
        for result in on_ranks(num_ranks, lambda comm: on_a_rank(comm, way, chosen, name, takers)):  # noqa: B023
            assert result.cross_term == alone.cross_term
            assert [values.tolist() for _, values in result.factors] == [values.tolist() for _, values in alone.factors]
            assert {key: rest.tolist() for key, rest in result.rest.items()} == {k: v.tolist() for k, v in alone.rest.items()}


def test_a_round_in_which_nobody_is_accepted() -> None:
    chosen = method(1, 4, 4)
    sums, rows = summed(Stacks, chosen, torch.full((2, 8), torch.nan), torch.tensor([1, 2]))
    means, cross = sums.means(0, torch.ones(8), rows.precise_mean("update"))
    assert (sums.total(), means.product.tolist(), cross.abs().max()) == (0, [[1.0] * 4] * 4, 0)


@pytest.mark.parametrize(("num_clients", "way"), [(511, Stacks), (512, Stacks), (513, ProductSums)])
def test_the_smaller_way_is_taken(num_clients: int, way: type[Sums]) -> None:
    """Rank 2 in layers of 512 x 512: 8,192 bytes a client against 4 MiB and the sum of weights."""
    chosen = of_layers((2, 512, 512), (2, 512, 512))
    assert isinstance(products.sums_of(chosen, roles(chosen), num_clients), way)


def test_layers_without_a_product_need_no_stacks() -> None:
    chosen = method(2, 5, 4)
    sums = products.sums_of(chosen, roles(chosen, "ffa_lora"), 3)
    assert (type(sums), sums.total()) == (ProductSums, None)


# --- what `plan` says


def test_forecast_bytes_are_those_that_a_rank_sends() -> None:
    """Two layers of 24 and 18 numbers; rank 0 has layer 0 and clients 0 to 3."""
    chosen = of_layers((2, 5, 7), (1, 10, 8))
    layers = lowrank.places(chosen, roles(chosen))

    def sent(comm: Communicator) -> int:
        own, meter = np.arange(7)[slice(0, 4) if comm.rank == 0 else slice(4, 7)], Meter(comm)
        sums = Stacks(layers)
        added(sums, own, torch.ones(len(own), chosen.num_params), torch.ones(len(own), dtype=torch.int64))
        sums.collect(meter)
        return meter.lap().num_bytes

    assert on_ranks(2, sent) == [4 * (16 + 4 * 18), 3 * (16 + 4 * 24)]
    assert stacks.num_bytes(layers, 7) == 4 * 7 * 42
    sizes = stacks.sizes(layers, 7, (3, 4), 2)
    assert (sizes.sent, sizes.received) == (4 * (16 + 4 * 24), 4 * (16 + 4 * 24)), "at most"
    assert sizes.memory == 4 * max(4 * 42, 7 * 24) + 24 * 7 * 24 + 32 * 35
    assert stacks.sizes(layers, 7, (7, 7), 1) == Sizes(0, 0, 4 * 7 * 42 + 24 * 7 * 24 + 32 * 35)


def test_a_plan_has_stacks_or_exact_sums() -> None:
    """Layers of the quickstart are 128 x 128 of rank 4: 256 clients fill the bytes of sums."""
    few = flora_hpc.plan(QUICKSTART, ranks=2, algorithm="flexlora")
    assert few.factors is not None
    assert (few.product_bytes, few.memory_bytes["factors of clients"]) == (0, few.factors.memory)
    assert few.allreduce_bytes == flora_hpc.plan(QUICKSTART, ranks=2).allreduce_bytes
    dynamic = flora_hpc.plan(QUICKSTART, ranks=2, algorithm="flexlora", cohort__assignment="dynamic").factors
    assert dynamic is not None
    assert dynamic.sent == 2 * few.factors.sent, "any rank may train all clients"
    many = {"partition": {"name": "iid", "num_clients": 1000, "examples_per_client": 8}}
    planned = flora_hpc.plan(QUICKSTART, ranks=2, algorithm="flexlora", **many)
    assert (planned.factors, planned.product_bytes) == (None, productsums.num_bytes(layers_of_quickstart()))
    assert "factors of clients" not in planned.memory_bytes


def layers_of_quickstart() -> tuple[lowrank.Place, ...]:
    """Four layers."""
    chosen = of_layers(*[(4, 128, 128)] * 4)
    return lowrank.places(chosen, roles(chosen))
