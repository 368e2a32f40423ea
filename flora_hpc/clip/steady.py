"""Layers whose weight gradients do not depend on the number of threads, so that one rank and many give the same bits.

On CPUs the gradient of a LayerNorm's weight and bias is gathered in one buffer per thread, and oneDNN cuts the gradient of a large
convolution's weight by threads, too. Matrix products (with MKL_CBWR set), attention and sums over rows are steady. This matters
only where such weights are trained. Convolutions whose patches overlap, and norms of channels, are left as they are.
"""

import sys

import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm
from torch import nn

SMALL = 256  # rows; differences were seen up to 3 of them, and none from 17 to 10,000


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left (num_clients or 1, n, k) times right (num_clients or 1, k, m) -> (num_clients, n, m).

    MKL cuts a lone product of a few rows by threads, in spite of MKL_CBWR, and it comes out differently for one and two of them;
    products in a batch do not. So a lone small one is computed twice.
    """
    if len(left) > 1 or len(right) > 1 or left.shape[1] > SMALL:
        return left @ right
    return (left.expand(2, -1, -1) @ right.expand(2, -1, -1))[:1]


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
