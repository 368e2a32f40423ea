"""Plain Linear layers where open_clip has none, so that an adapter can sit on each of them.

open_clip's blocks use nn.MultiheadAttention, whose query, key and value share one fused weight that adapters cannot address
one by one, and whose output projection is a weight read directly, so that an adapter put on it would never take part. The heads of
both towers are bare matrices.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

HEADS = ("text_projection", "proj")


class SplitAttention(nn.Module):
    """The same numbers as the nn.MultiheadAttention it replaces, from four Linear layers."""

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = fused.num_heads
        weights = fused.in_proj_weight.detach().chunk(3)
        biases = (None,) * 3 if fused.in_proj_bias is None else fused.in_proj_bias.detach().chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(fused.out_proj.weight.detach(), fused.out_proj.bias)
        self.requires_grad_(fused.in_proj_weight.requires_grad)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """(batch, length, width) each -> ((batch, length, width), None), as nn.MultiheadAttention with batch_first."""
        if attn_mask is not None and attn_mask.ndim == 3:  # one mask for each head of each sequence
            attn_mask = attn_mask.view(len(query), self.num_heads, *attn_mask.shape[1:])
        mixed = attend(self.q_proj(query), self.k_proj(key), self.v_proj(value), self.num_heads, attn_mask)
        return self.out_proj(mixed), None


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A Linear layer on these values, which are not copied: they may lie in a mapped file that other ranks read, too."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")  # meta: no random numbers are drawn
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach())
    return layer


class Projection(nn.Module):
    """A Linear layer that stands where open_clip writes `x @ matrix`."""

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__()
        self.linear = _linear(matrix.detach().T, None).requires_grad_(matrix.requires_grad)

    def __rmatmul__(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(x)
        return y


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_heads: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Scaled dot-product attention of projected (batch, length, width) tensors, heads side by side in the width."""

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], num_heads, -1).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(heads(query), heads(key), heads(value), attn_mask=mask)
    return mixed.transpose(1, 2).reshape(query.shape)


def split(model: nn.Module) -> nn.Module:
    """Put plain Linear layers into `model`, in place; returns `model`, which computes the same numbers as before.

    Every nn.MultiheadAttention of self-attention becomes a SplitAttention (q_proj, k_proj, v_proj, out_proj), every head that is
    a bare matrix (text_projection, visual.proj) a Projection (`.linear`).
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MultiheadAttention) and child.in_proj_weight is not None and child.batch_first:
                setattr(parent, name, SplitAttention(child))
        for name in HEADS:
            matrix = parent._parameters.get(name)
            if matrix is not None:
                delattr(parent, name)
                setattr(parent, name, Projection(matrix))
    return model


def fuse(model: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state`, a state dict of the split `model`, under open_clip's own names and shapes: what `split` did, undone."""
    fused = dict(state)
    for path, part in model.named_modules():
        if isinstance(part, SplitAttention):
            for kind in ("weight", "bias"):
                if f"{path}.q_proj.{kind}" in fused:
                    fused[f"{path}.in_proj_{kind}"] = torch.cat([fused.pop(f"{path}.{name}_proj.{kind}") for name in "qkv"])
        elif isinstance(part, Projection):
            fused[path] = fused.pop(f"{path}.linear.weight").T.contiguous()
    return fused
