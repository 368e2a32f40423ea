from copy import deepcopy

import pytest
import torch
from torch import nn

from flora_hpc.clip import frozen
from flora_hpc.clip.frozen import FrozenProducts, linear
from tests.conftest import NEEDS_BF16

SHAPES = [(1, 24, 40), (3, 512, 512), (17, 128, 384), (35, 512, 2048), (64, 2048, 512), (280, 512, 1536), (560, 768, 768)]


def layer(inputs: int, outputs: int, dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    made = nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(inputs * outputs)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


def result_and_gradient(x: torch.Tensor, of: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = linear(x, of)
    (gradient,) = torch.autograd.grad(y, x, torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y))
    return y.detach(), gradient


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_result_and_gradient_equal_those_in_double_precision(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    of = layer(inputs, outputs, bias=bias)
    x = torch.randn(2, rows, inputs, generator=torch.Generator().manual_seed(0))
    rounding = torch.finfo(torch.float32).eps * max(inputs, outputs) ** 0.5  # of a sum of so many products
    for actual, exact in zip(result_and_gradient(x, of), result_and_gradient(x.double(), deepcopy(of).double()), strict=True):
        assert actual.shape == exact.shape
        assert (actual - exact).abs().max() < rounding * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=NEEDS_BF16)])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_bits_are_the_same_for_any_number_of_threads(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    of, before = layer(inputs, outputs, dtype), torch.get_num_threads()
    x = torch.randn(1, rows, inputs, generator=torch.Generator().manual_seed(0))
    try:
        torch.set_num_threads(1)
        alone = result_and_gradient(x, of)
        for num_threads in (2, 3, 8):
            torch.set_num_threads(num_threads)
            assert all(map(torch.equal, alone, result_and_gradient(x, of)))
    finally:
        torch.set_num_threads(before)


@NEEDS_BF16
def test_weights_of_half_the_size_stay_near_and_leave_the_type_of_the_input() -> None:
    of = layer(512, 256)
    x = torch.randn(7, 512, generator=torch.Generator().manual_seed(0))
    exact, half = result_and_gradient(x, of), result_and_gradient(x, deepcopy(of).bfloat16())
    for a, b in zip(exact, half, strict=True):
        assert b.dtype == torch.float32
        assert 1e-5 < (a - b).norm() / a.norm() < 1e-2  # bfloat16 keeps eight bits


def test_a_layer_whose_weight_is_trained_is_not_taken_for_frozen() -> None:
    with pytest.raises(AssertionError):
        linear(torch.zeros(1, 2), nn.Linear(2, 2))


def test_modules_own_code_goes_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    of, trained, x = layer(8, 8), nn.Linear(8, 8), torch.randn(3, 8, requires_grad=True)
    expected = linear(x, of)
    calls: list[torch.Tensor] = []
    real = frozen.product
    monkeypatch.setattr(frozen, "product", lambda x, weight, bias: (calls.append(weight), real(x, weight, bias))[1])
    with FrozenProducts():
        assert torch.equal(nn.Sequential(of, nn.ReLU())(x), expected.relu())
        trained(x).sum().backward()
    assert trained.weight.grad is not None
    assert [id(weight) for weight in calls] == ([id(of.weight)] if frozen.HAS_ONEDNN else [])


def test_pytorch_still_has_the_operator() -> None:
    """It is not a documented one; without it everything works, at half the speed."""
    assert frozen.HAS_ONEDNN or not torch.backends.mkldnn.is_available()
