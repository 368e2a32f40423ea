"""Attention with plain query, key, value and output projections, so that an adapter can sit on each of them.

open_clip's blocks use nn.MultiheadAttention, whose query, key and value share one fused weight that adapters cannot address
one by one, and whose output projection is a weight read directly, so that an adapter put on it would never take part.
"""

import torch
import torch.nn.functional as F
from torch import nn


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
        mixed = attend(self.q_proj(query), self.k_proj(key), self.v_proj(value), self.num_heads, attn_mask)
        return self.out_proj(mixed), None


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A Linear layer with copies of these values."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")  # meta: no random numbers are drawn
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_heads: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Scaled dot-product attention of projected (batch, length, width) tensors, heads side by side in the width."""

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], num_heads, -1).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(heads(query), heads(key), heads(value), attn_mask=mask)
    return mixed.transpose(1, 2).reshape(query.shape)


def split(model: nn.Module) -> nn.Module:
    """Replace every nn.MultiheadAttention of self-attention in `model` by its split form, in place; returns `model`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MultiheadAttention) and child.in_proj_weight is not None and child.batch_first:
                setattr(parent, name, SplitAttention(child))
    return model
