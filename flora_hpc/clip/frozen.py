"""Products with frozen weights, which are nearly all of the work.

On CPUs oneDNN computes them. PyTorch's own float32 `linear` calls MKL. On AMD processors MKL reaches half the speed of oneDNN (104
against 225 GFLOP/s on one Zen 5 core). oneDNN's products had the same bits for 1 to 16 threads in all shapes tried. torch.compile
replaces `linear` by the same operator.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from flora_hpc.clip.alike import are_alike, spread

ONEDNN_TYPES = (torch.float32, torch.bfloat16)
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


def linear(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """Apply a Linear layer with frozen weights, (..., in) -> (..., out); only x gets a gradient.

    With bfloat16 weights the product is bfloat16; the result has the type of x.
    """
    assert isinstance(layer, nn.Linear)
    assert not layer.weight.requires_grad
    return _linear(x, layer.weight, layer.bias)


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    if weight.dtype == torch.bfloat16 != x.dtype:
        y: torch.Tensor = _Cast.apply(x, weight, bias)
    elif _through_onednn(x, weight) or are_alike(x):
        y = _Product.apply(x, weight, bias)
    else:
        y = F.linear(x, weight, bias)
    return y


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x (..., in) times weight (out, in) transposed, plus bias (out,), all of one type; no gradient."""
    if _through_onednn(x, weight):
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y
    return F.linear(x, weight, bias)


class _Product(torch.autograd.Function):
    """oneDNN's product; the backward pass reads the weight transposed, without a copy."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.weight = weight
        return spread(lambda row: product(row, weight, bias), x) if are_alike(x) else product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return product(gradients[0].contiguous(), ctx.weight.t(), None), None, None


class _Cast(torch.autograd.Function):
    """The product in the weight's type, for x and a result of another type."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.weight = weight

        def compute(x: torch.Tensor) -> torch.Tensor:
            return product(x.to(weight.dtype), weight, bias).to(x.dtype)

        return spread(compute, x) if are_alike(x) else compute(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient = gradients[0]
        return product(gradient.to(ctx.weight.dtype).contiguous(), ctx.weight.t(), None).to(gradient.dtype), None, None


class FrozenProducts(TorchFunctionMode):
    """Inside, frozen Linear layers of any module are computed as by `linear`; for towers whose own code runs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func is not F.linear:
            return func(*args, **named)
        x, weight, bias = _arguments(*args, **named)
        return F.linear(x, weight, bias) if weight.requires_grad else _linear(x, weight, bias)


def _arguments(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> tuple[Any, ...]:
    """The arguments of F.linear, whether given by name or by place."""
    return input, weight, bias


@contextmanager
def tensor_cores(tf32: bool) -> Iterator[None]:
    """Inside, float32 products and convolutions on a GPU use tf32, or not, as `tf32` says."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = tf32
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


def _through_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return HAS_ONEDNN and x.device.type == "cpu" and x.dtype == weight.dtype and x.dtype in ONEDNN_TYPES
