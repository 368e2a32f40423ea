"""Layers and products whose bits do not depend on the number of threads, so that one rank and many give the same bits.

On CPUs, PyTorch gathers the gradient of a LayerNorm's weight and bias in one buffer per thread. oneDNN cuts the gradient of a large
convolution's weight by threads. Both matter only where such weights are trained. MKL cuts small products by threads. Large products
(with MKL_CBWR set), attention and sums over rows are steady. Convolutions whose patches overlap, and norms of channels, are left as
they are.
"""

import sys
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm
from torch import nn
from torch.overrides import TorchFunctionMode

from flora_hpc.clip.alike import are_alike, spread

SMALL = 128  # rows or columns below which MKL may cut a product by threads; it did so up to 64, and never from 100 (8 threads)
BLOCK = 4096  # columns that are summed at once; PyTorch cuts single rows of 32,768 numbers or more by threads


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left (num_clients or 1, n, k) times right (num_clients or 1, k, m) -> (num_clients, n, m).

    The bits of a client's part, and of its gradients, depend neither on the other clients nor on the number of threads.
    """
    x: torch.Tensor = _ClientProducts.apply(left, right)
    return x


class _ClientProducts(torch.autograd.Function):
    """One product for each client, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(left, right)
        return spread(multiply, left, right) if are_alike(left, right) else multiply(left, right)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        (gradient,), (left, right) = gradients, ctx.saved_tensors
        gradient_left = multiply(gradient, right.transpose(1, 2)) if ctx.needs_input_grad[0] else None
        gradient_right = multiply(left.transpose(1, 2), gradient) if ctx.needs_input_grad[1] else None
        return sum_if_shared(gradient_left, len(left)), sum_if_shared(gradient_right, len(right))


def sum_if_shared(gradient: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """Sum the clients' gradients (num_clients, ...) of an operand that all clients share (`length` 1); keep others as they are."""
    return gradient if gradient is None or gradient.shape[0] == length else gradient.sum(0, keepdim=True)


def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The same as `product`, without gradients.

    MKL cuts small products by threads where there are fewer clients than threads, in spite of MKL_CBWR. Such products are therefore
    computed on one thread. A single product with a single column is computed twice, since MKL has another kernel for it.
    """
    num_clients, num_threads = max(left.shape[0], right.shape[0]), torch.get_num_threads()
    enough = num_clients >= max(2, num_threads)
    if enough or left.device.type != "cpu" or min(left.shape[1], right.shape[2]) >= SMALL:
        return left @ right
    torch.set_num_threads(1)  # takes a tenth of a microsecond
    try:
        if num_clients > 1 or right.shape[2] > 1:
            return left @ right
        return (left.expand(2, -1, -1) @ right.expand(2, -1, -1))[:1]
    finally:
        torch.set_num_threads(num_threads)


def row_sums(x: torch.Tensor) -> torch.Tensor:
    """Sum each row of x (num_clients, n) -> (num_clients,) float64.

    PyTorch cuts the sum of a single long row by threads. Here each row is cut into blocks of BLOCK columns, whose sums are added
    in their order. The bits of a client's sum depend neither on the other clients nor on the number of threads.
    """
    sums = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for start in range(0, x.shape[1], BLOCK):
        sums = sums + x[:, start : start + BLOCK].double().contiguous().sum(1)
    return sums


class SteadyProducts(TorchFunctionMode):
    """Inside, Linear layers with one client's weights use `product`; for towers whose own code runs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.linear or kwargs or args[1].ndim != 2:
            return func(*args, **(kwargs or {}))
        x, weight, bias = (*args, None)[:3]
        y = product(x.reshape(1, -1, x.shape[-1]), weight.t()[None]).view(*x.shape[:-1], -1)
        return y if bias is None else y + bias


class SteadyNorm(nn.Module):
    """nn.LayerNorm; the gradient of a trained weight is a sum over rows."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.normalized_shape = norm.weight, norm.bias, norm.eps, norm.normalized_shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> the same."""
        if not self.weight.requires_grad:
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return F.layer_norm(x, self.normalized_shape, None, None, self.eps) * self.weight + self.bias


class Patches(nn.Module):
    """A convolution whose patches do not overlap, as one matrix product over patches."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) -> (batch, out_channels, rows, columns); an incomplete patch at a border is cut off."""
        _, channels, height, width = self.weight.shape
        rows, columns = x.shape[2] // height, x.shape[3] // width
        x = x[:, :, : rows * height, : columns * width].reshape(len(x), channels, rows, height, columns, width)
        patches = x.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (batch, rows, columns, channels * height * width)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def steady(model: nn.Module) -> nn.Module:
    """Replace layers of `model` by steady ones, in place, under the same names; its results stay the same to rounding."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in norms() and child.weight is not None and child.bias is not None:
                setattr(parent, name, SteadyNorm(child))  # type: ignore[arg-type] # mypy does not narrow by type()
            elif isinstance(child, nn.Conv2d) and _has_separate_patches(child):
                setattr(parent, name, Patches(child))
    return model


def norms() -> set[type]:
    """The LayerNorm classes, without subclasses that normalise something else. A timm that is not loaded has built no layer."""
    timm = sys.modules.get("timm.layers")
    return {nn.LayerNorm, LayerNorm} | ({timm.LayerNorm} if timm else set())


def _has_separate_patches(conv: nn.Conv2d) -> bool:
    apart = conv.stride == conv.kernel_size and set(conv.dilation) == {1}
    return apart and conv.padding in ((0, 0), "valid") and conv.groups == 1 and conv.kernel_size != (1, 1)
