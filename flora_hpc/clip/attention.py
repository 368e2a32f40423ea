"""Replace open_clip's fused layers by plain Linear layers (unfuse), so that an adapter can sit on each layer.

open_clip's blocks use nn.MultiheadAttention. Its query, key and value share one fused weight, so adapters cannot address them one
by one. It reads the weight of its output projection directly, so an adapter on this projection would have no effect. The heads of
both towers are bare matrices.

Every layer that an adapter can sit on gets a name that open_clip's own model lacks. PEFT then refuses to put an adapter on a model
that was not unfused, where some parts of the adapter would have no effect. PEFT ignores parts of an adapter that it cannot place.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

HEADS = ("text_projection", "proj")
MLP = {"c_fc": "up_proj", "c_proj": "down_proj"}  # open_clip's layers of a block's MLP, and their names in an unfused model
RENAMED = {"attn.out_proj": "attn.o_proj"} | {f"mlp.{fused}": f"mlp.{plain}" for fused, plain in MLP.items()}
FORMER = {f".{former}.": f".{current}." for former, current in RENAMED.items()} | {"text_projection.": "text_projection.linear."}


class SplitAttention(nn.Module):
    """Four Linear layers that compute the same numbers as the nn.MultiheadAttention `fused`."""

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = fused.num_heads
        weights = fused.in_proj_weight.detach().chunk(3)
        biases = (None,) * 3 if fused.in_proj_bias is None else fused.in_proj_bias.detach().chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.o_proj = _linear(fused.out_proj.weight.detach(), fused.out_proj.bias)
        self.requires_grad_(fused.in_proj_weight.requires_grad)

    def joined(self) -> nn.Linear | None:
        """q_proj, k_proj and v_proj as one frozen layer, without a copy; None where their values do not lie side by side."""
        layers, joined = (self.q_proj, self.k_proj, self.v_proj), self.__dict__.get("_joined")
        if joined is None or joined.weight.data_ptr() != self.q_proj.weight.data_ptr():
            weight = side_by_side([layer.weight.detach() for layer in layers])
            biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
            bias = side_by_side(biases) if biases else None
            if weight is None or (biases and bias is None):
                return None
            joined = self.__dict__["_joined"] = _linear(weight, bias).requires_grad_(False)  # __dict__: it is no submodule
        return joined

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
    """One tensor over all `parts` (n, ...), where they lie one after the other in memory; else None."""
    first, starts = parts[0], [part.data_ptr() for part in parts]
    uniform = all(part.is_contiguous() and part.dtype == first.dtype and part.shape == first.shape for part in parts)
    one_storage = len({part.untyped_storage().data_ptr() for part in parts}) == 1
    if not uniform or not one_storage or starts != list(range(starts[0], starts[0] + first.nbytes * len(parts), first.nbytes)):
        return None
    return first.as_strided((len(parts) * first.shape[0], *first.shape[1:]), first.stride())


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A Linear layer on these values. They are not copied: they may lie in a mapped file that other ranks read, too."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")  # meta: no random numbers are drawn
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach())
    return layer


class SplitMlp(nn.Sequential):
    """A block's MLP, with its two Linear layers renamed to up_proj and down_proj."""

    def __init__(self, mlp: nn.Sequential) -> None:
        super().__init__(OrderedDict((MLP.get(name, name), layer) for name, layer in mlp.named_children()))

    @property
    def c_fc(self) -> nn.Module:
        """The first layer: open_clip looks up its number format under this name."""
        return self.get_submodule("up_proj")


class Projection(nn.Module):
    """A tower's head as a Linear layer: open_clip has a bare matrix there (`x @ matrix`), or a Linear layer."""

    def __init__(self, head: torch.Tensor | nn.Linear) -> None:
        super().__init__()
        self.was_matrix = isinstance(head, torch.Tensor)
        self.linear = _linear(head.detach().T, None).requires_grad_(head.requires_grad) if isinstance(head, torch.Tensor) else head

    def __rmatmul__(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(x)
        return y


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_heads: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Scaled dot-product attention of projected (batch, length, width) tensors; heads lie side by side in the width."""

    def by_head(x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], num_heads, -1).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(by_head(query), by_head(key), by_head(value), attn_mask=mask)
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
    """Undo `unfuse`: `state`, a state dict of the unfused `model`, under open_clip's own names and shapes."""
    fused = dict(state)
    for path, part in model.named_modules():
        for kind in ("weight", "bias"):
            if isinstance(part, SplitAttention) and f"{path}.q_proj.{kind}" in fused:
                fused[f"{path}.in_proj_{kind}"] = torch.cat([fused.pop(f"{path}.{name}_proj.{kind}") for name in "qkv"])
                fused[f"{path}.out_proj.{kind}"] = fused.pop(f"{path}.o_proj.{kind}")
            elif isinstance(part, SplitMlp):
                for fused_name, plain_name in MLP.items():
                    fused[f"{path}.{fused_name}.{kind}"] = fused.pop(f"{path}.{plain_name}.{kind}")
            elif isinstance(part, Projection) and f"{path}.linear.{kind}" in fused:
                value = fused.pop(f"{path}.linear.{kind}")
                fused |= {path: value.T.contiguous()} if part.was_matrix else {f"{path}.{kind}": value}
    return fused


def open_clip_name(path: str) -> str:
    """The path of an unfused model's layer, with open_clip's own name for the layer."""
    for fused, plain in RENAMED.items():
        path = path.replace(f".{plain}", f".{fused}")
    return path


def by_current_names(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Rename `tensors` of a file to the current layer names of an unfused model, `names`. Earlier versions used open_clip's."""
    current_names = set(names)

    def current_name(name: str) -> str:
        for former, current in FORMER.items():
            if name not in current_names and name.replace(former, current) in current_names:
                return name.replace(former, current)
        return name

    return {current_name(name): tensor for name, tensor in tensors.items()}
