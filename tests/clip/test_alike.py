"""What clients share is computed once, and each gets its own gradient: against plain torch in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from flora_hpc.clip import alike, steady
from flora_hpc.clip.frozen import linear
from tests.conftest import NEEDS_BF16

Compute = Callable[..., torch.Tensor]
CLIENTS = 3
SINGLE, HALF = 2.0**-24, 2.0**-8  # rounding of one number of float32, of bfloat16


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shared(*shape: int, seed: int = 0) -> torch.Tensor:
    """The same for all clients: (num_clients, *shape) with a stride of 0."""
    return numbers(1, *shape, seed=seed).expand(CLIENTS, *shape)


def result_and_gradients(compute: Compute, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Of gradients from above that are each client's own, or shared by all as those of a plain sum are."""
    results = []
    for own in (True, False):
        leaves = [x.detach().requires_grad_() for x in tensors]
        y = compute(*leaves)
        above = numbers(*y.shape, seed=9).to(y) if own else torch.ones((), dtype=y.dtype).expand(y.shape)
        results += [y.detach(), *torch.autograd.grad(y, leaves, above)]
    return results


def check(compute: Compute, plain: Compute, *tensors: torch.Tensor, rounding: float = SINGLE, terms: int = 64) -> None:
    """`compute` in float32 against `plain` in float64, to within the `rounding` of sums of so many `terms`."""
    assert alike.are_alike(*tensors)
    actual, expected = result_and_gradients(compute, *tensors), result_and_gradients(plain, *(x.double() for x in tensors))
    assert actual[0].stride(0) == 0, "it was computed for each client"
    for one, exact in zip(actual, expected, strict=True):
        assert one.dtype == torch.float32
        assert one.shape == exact.shape
        assert (one - exact).abs().max() <= rounding * terms**0.5 * 4 * exact.abs().max().clamp(min=1)


def layer(inputs: int, outputs: int, bias: bool) -> nn.Linear:
    made = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    for number, parameter in enumerate(made.parameters()):
        parameter.copy_(numbers(*parameter.shape, seed=number + 1))
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 24, 40), (7, 64, 16), (33, 128, 128)])
def test_a_frozen_layer(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    of = layer(inputs, outputs, bias)
    weight, shift = of.weight.double(), None if of.bias is None else of.bias.double()
    check(
        lambda x: linear(x, of),
        lambda x: nn.functional.linear(x, weight, shift),
        shared(rows, inputs),
        terms=max(inputs, outputs),
    )


@NEEDS_BF16
@pytest.mark.parametrize("bias", [True, False])
def test_a_frozen_layer_in_bfloat16(bias: bool) -> None:
    """Against the weights as they are after rounding; what goes in and comes out is rounded as well."""
    of = layer(64, 48, bias).bfloat16()
    weight, shift = of.weight.double(), None if of.bias is None else of.bias.double()
    check(lambda x: linear(x, of), lambda x: nn.functional.linear(x, weight, shift), shared(9, 64), rounding=HALF, terms=1)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=NEEDS_BF16)])
def test_a_shared_row_has_the_bits_of_a_row_of_its_own(dtype: torch.dtype) -> None:
    of, x = layer(64, 48, bias=True).to(dtype), shared(9, 64)
    together = result_and_gradients(lambda x: linear(x, of), x)
    apart = result_and_gradients(lambda x: linear(x, of), x.contiguous())
    assert all(map(torch.equal, together, apart))


@pytest.mark.parametrize(("rows", "inner", "columns"), [(5, 16, 1), (7, 64, 10), (130, 32, 140)])
def test_a_product_of_clients_matrices(rows: int, inner: int, columns: int) -> None:
    check(steady.product, torch.matmul, shared(rows, inner), shared(inner, columns, seed=1), terms=max(rows, inner, columns))


def test_a_product_with_one_matrix_for_all() -> None:
    """That of a frozen part has one row, and its gradient is the sum over clients."""
    check(steady.product, torch.matmul, shared(5, 16), numbers(1, 16, 4, seed=1), terms=CLIENTS * 16)


def test_cheap_functions_and_sums() -> None:
    norm = nn.LayerNorm(32, elementwise_affine=False)
    check(lambda x: alike.once(norm, x), norm, shared(6, 32))
    check(lambda x, y: alike.once(torch.mul, x, y), torch.mul, shared(6, 32), shared(6, 32, seed=1))
    check(alike.add, torch.add, shared(6, 32), shared(6, 32, seed=1))
    check(alike.add, torch.add, shared(6, 32), numbers(1, 6, 32, seed=1))


def test_a_chain_gives_each_client_the_gradient_of_its_own() -> None:
    """A layer, a norm, a product with what clients train, and a sum, as in a tower."""
    of = layer(32, 32, bias=True)
    wide = layer(32, 32, bias=True).double()

    def tower(x: torch.Tensor, own: torch.Tensor, linear: Compute, once: Compute, product: Compute, add: Compute) -> torch.Tensor:
        return add(x, product(once(torch.tanh, linear(x)), own))

    def fast(x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return tower(x, own, lambda x: linear(x, of), alike.once, steady.product, alike.add)

    def plain(x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return tower(x, own, wide, lambda compute, x: compute(x), torch.matmul, torch.add)

    check(fast, plain, shared(6, 32), shared(32, 32, seed=3), terms=32 * 32)


def test_tensors_of_which_one_is_a_clients_own_are_not_alike() -> None:
    assert alike.are_alike(shared(2), numbers(1, 2))
    assert not alike.are_alike(shared(2), numbers(CLIENTS, 2))
    assert not alike.are_alike(numbers(1, 2), numbers(1, 2))
    apart = alike.add(shared(2), numbers(CLIENTS, 2, seed=1))
    assert apart.equal(numbers(1, 2) + numbers(CLIENTS, 2, seed=1))
