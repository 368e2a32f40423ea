"""Plain Linear layers where open_clip has none, so that an adapter can sit on each of them.

open_clip's blocks use nn.MultiheadAttention, whose query, key and value share one fused weight that adapters cannot address
one by one, and whose output projection is a weight read directly, so that an adapter put on it would never take part. The heads of
both towers are bare matrices.

Every layer that an adapter can sit on has a name here that open_clip's own model lacks. PEFT then refuses to put an adapter on a
model that was not split, where some of its parts would be read past and others would not. It ignores parts that it cannot place.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

HEADS = ("text_projection", "proj")
MLP = {"c_fc": "up_proj", "c_proj": "down_proj"}  # open_clip's layers of a block's MLP, and their names in a split model
RENAMED = {"attn.out_proj": "attn.o_proj"} | {f"mlp.{theirs}": f"mlp.{ours}" for theirs, ours in MLP.items()}
FORMER = {f".{former}.": f".{current}." for former, current in RENAMED.items()} | {"text_projection.": "text_projection.linear."}


class SplitAttention(nn.Module):
    """The same numbers as the nn.MultiheadAttention it replaces, from four Linear layers."""

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = fused.num_heads
        weights = fused.in_proj_weight.detach().chunk(3)
        biases = (None,) * 3 if fused.in_proj_bias is None else fused.in_proj_bias.detach().chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.o_proj = _linear(fused.out_proj.weight.detach(), fused.out_proj.bias)
        self.requires_grad_(fused.in_proj_weight.requires_grad)

    def joined(self) -> nn.Linear | None:
        """q_proj, k_proj and v_proj as one layer, frozen, as long as their values lie side by side; none is copied."""
        layers, kept = (self.q_proj, self.k_proj, self.v_proj), self.__dict__.get("_joined")
        if kept is None or kept.weight.data_ptr() != self.q_proj.weight.data_ptr():
            weight = side_by_side([layer.weight.detach() for layer in layers])
            biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
            bias = side_by_side(biases) if biases else None
            if weight is None or (biases and bias is None):
                return None
            kept = self.__dict__["_joined"] = _linear(weight, bias).requires_grad_(False)  # beside the modules: it is none of them
        return kept

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
        return self.o_proj(mixed), None


def side_by_side(parts: list[torch.Tensor]) -> torch.Tensor | None:
    """One tensor of all that `parts` (n, ...) hold, where they lie one after the other in memory; else None."""
    first, starts = parts[0], [part.data_ptr() for part in parts]
    near = all(part.is_contiguous() and part.dtype == first.dtype and part.shape == first.shape for part in parts)
    near = near and len({part.untyped_storage().data_ptr() for part in parts}) == 1
    if not near or starts != list(range(starts[0], starts[0] + first.nbytes * len(parts), first.nbytes)):
        return None
    return first.as_strided((len(parts) * first.shape[0], *first.shape[1:]), first.stride())


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A Linear layer on these values, which are not copied: they may lie in a mapped file that other ranks read, too."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")  # meta: no random numbers are drawn
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach())
    return layer


class SplitMlp(nn.Sequential):
    """A block's MLP, its two Linear layers called up_proj and down_proj."""

    def __init__(self, mlp: nn.Sequential) -> None:
        super().__init__(OrderedDict((MLP.get(name, name), layer) for name, layer in mlp.named_children()))

    @property
    def c_fc(self) -> nn.Module:
        """The first layer, whose number format open_clip looks up under this name."""
        return self.get_submodule("up_proj")


class Projection(nn.Module):
    """A Linear layer that stands where open_clip writes `x @ matrix`, or has a Linear layer for a head."""

    def __init__(self, head: torch.Tensor | nn.Linear) -> None:
        super().__init__()
        self.was_matrix = isinstance(head, torch.Tensor)
        self.linear = _linear(head.detach().T, None).requires_grad_(head.requires_grad) if isinstance(head, torch.Tensor) else head

    def __rmatmul__(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(x)
        return y


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_heads: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Scaled dot-product attention of projected (batch, length, width) tensors, heads side by side in the width."""

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], num_heads, -1).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(heads(query), heads(key), heads(value), attn_mask=mask)
    return mixed.transpose(1, 2).reshape(query.shape)


def unfuse(model: nn.Module) -> nn.Module:
    """Put plain Linear layers into `model`, in place; returns `model`, which computes the same numbers as before.

    Every nn.MultiheadAttention of self-attention becomes a SplitAttention (q_proj, k_proj, v_proj, o_proj). The layers of an MLP
    are renamed (up_proj, down_proj). Every head, text_projection or visual.proj, becomes a Projection (`.linear`).
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MultiheadAttention) and child.in_proj_weight is not None and child.batch_first:
                setattr(parent, name, SplitAttention(child))
            elif isinstance(child, nn.Sequential) and MLP.keys() <= child._modules.keys():
                setattr(parent, name, SplitMlp(child))
            elif isinstance(child, nn.Linear) and name == "text_projection":
                setattr(parent, name, Projection(child))
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
        for kind in ("weight", "bias"):
            if isinstance(part, SplitAttention) and f"{path}.q_proj.{kind}" in fused:
                fused[f"{path}.in_proj_{kind}"] = torch.cat([fused.pop(f"{path}.{name}_proj.{kind}") for name in "qkv"])
                fused[f"{path}.out_proj.{kind}"] = fused.pop(f"{path}.o_proj.{kind}")
            elif isinstance(part, SplitMlp):
                for theirs, ours in MLP.items():
                    fused[f"{path}.{theirs}.{kind}"] = fused.pop(f"{path}.{ours}.{kind}")
            elif isinstance(part, Projection) and f"{path}.linear.{kind}" in fused:
                value = fused.pop(f"{path}.linear.{kind}")
                fused |= {path: value.T.contiguous()} if part.was_matrix else {f"{path}.{kind}": value}
    return fused


def open_clip_name(path: str) -> str:
    """The path of a split model's layer, with open_clip's own name for the layer."""
    for theirs, ours in RENAMED.items():
        path = path.replace(f".{ours}", f".{theirs}")
    return path


def by_current_names(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Rename `tensors` of a file to the current names of a split model's layers, `names`. Earlier versions had open_clip's own."""
    current_names = set(names)

    def current_name(name: str) -> str:
        for former, current in FORMER.items():
            if name not in current_names and name.replace(former, current) in current_names:
                return name.replace(former, current)
        return name

    return {current_name(name): tensor for name, tensor in tensors.items()}
