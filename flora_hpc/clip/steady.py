"""Layers and products that do not depend on the number of threads, so that one rank and many give the same bits.

On CPUs the gradient of a LayerNorm's weight and bias is gathered in one buffer per thread, and oneDNN cuts the gradient of a large
convolution's weight by threads, too; that matters only where such weights are trained. MKL cuts small products. Large ones (with
MKL_CBWR set), attention and sums over rows are steady. Convolutions whose patches overlap, and norms of channels, are left as they
are.
"""

import sys
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm
from torch import nn
from torch.overrides import TorchFunctionMode

from flora_hpc.clip.alike import are_alike, spread

SMALL = 128  # rows or columns of a product that MKL may cut by threads; it did so up to 64 of them, and never from 100 (8 threads)


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left (num_clients or 1, n, k) times right (num_clients or 1, k, m) -> (num_clients, n, m).

    Each client's part, and its gradients, are the same bits whoever is beside it and on however many threads.
    """
    x: torch.Tensor = _EachClients.apply(left, right)
    return x


class _EachClients(torch.autograd.Function):
    """A product of its own for each client, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(left, right)
        return spread(multiply, left, right) if are_alike(left, right) else multiply(left, right)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        (gradient,), (left, right) = gradients, ctx.saved_tensors
        of_left = multiply(gradient, right.transpose(1, 2)) if ctx.needs_input_grad[0] else None
        of_right = multiply(left.transpose(1, 2), gradient) if ctx.needs_input_grad[1] else None
        return of_all(of_left, len(left)), of_all(of_right, len(right))


def of_all(gradient: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """Clients' gradients (num_clients, ...); of an operand of `length` 1, which all clients share, added up."""
    return gradient if gradient is None or gradient.shape[0] == length else gradient.sum(0, keepdim=True)


def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The same as `product`, without gradients.

    MKL cuts small products by threads where there are fewer clients than threads, in spite of MKL_CBWR. Those are therefore
    computed on one thread; and a lone one of a single column, for which MKL has another way, twice.
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


class SteadyProducts(TorchFunctionMode):
    """Inside, Linear layers with weights of one client go the same way, for towers whose own code runs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.linear or kwargs or args[1].ndim != 2:
            return func(*args, **(kwargs or {}))
        x, weight, bias = (*args, None)[:3]
        y = product(x.reshape(1, -1, x.shape[-1]), weight.t()[None]).view(*x.shape[:-1], -1)
        return y if bias is None else y + bias


class SteadyNorm(nn.Module):
    """nn.LayerNorm; where its weight is trained, the gradient is a sum over rows."""

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
        """(batch, channels, height, width) -> (batch, out_channels, rows, columns); a rest at the border is left out."""
        _, channels, tall, wide = self.weight.shape
        rows, columns = x.shape[2] // tall, x.shape[3] // wide
        x = x[:, :, : rows * tall, : columns * wide].reshape(len(x), channels, rows, tall, columns, wide)
        patches = x.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (batch, rows, columns, channels * tall * wide)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def steady(model: nn.Module) -> nn.Module:
    """Put steady layers into `model`, in place, under the same names; returns `model`, which computes the same to rounding."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in norms() and child.weight is not None and child.bias is not None:
                setattr(parent, name, SteadyNorm(child))  # type: ignore[arg-type] # mypy does not narrow by type()
            elif isinstance(child, nn.Conv2d) and _has_separate_patches(child):
                setattr(parent, name, Patches(child))
    return model


def norms() -> set[type]:
    """LayerNorms, and not those that inherit from them to normalise something else. A timm that is not loaded has built none."""
    timm = sys.modules.get("timm.layers")
    return {nn.LayerNorm, LayerNorm} | ({timm.LayerNorm} if timm else set())


def _has_separate_patches(conv: nn.Conv2d) -> bool:
    apart = conv.stride == conv.kernel_size and set(conv.dilation) == {1}
    return apart and conv.padding in ((0, 0), "valid") and conv.groups == 1 and conv.kernel_size != (1, 1)
