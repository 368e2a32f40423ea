"""The text tower for many clients at once: each distinct token of each distinct caption is encoded once.

A CLIP text tower is causal and reads its feature at the end token, so what a position holds depends on the tokens before it and on
nothing after it. The captions of a run are therefore laid out as a trie: captions that begin alike share the nodes of their common
beginning, equal captions share all, and padding does not occur. A node attends to itself and its ancestors. This gives the same
features as encoding every padded caption by itself, to rounding. In the last block only the end nodes are computed further.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import nn

from flora_hpc.clip.attention import Projection, SplitAttention, attend
from flora_hpc.clip.lora import Lora

NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Trie:
    """Captions as a tree of tokens; a node comes after its parent."""

    tokens: torch.Tensor  # (num_nodes,) int64
    depths: torch.Tensor  # (num_nodes,) int64, the position in the caption
    sees: torch.Tensor  # (num_nodes, num_nodes) bool: row attends to column
    ends: torch.Tensor  # (num_captions,) int64, the node of each caption's end token


def build_trie(tokens: torch.Tensor) -> Trie:
    """Tokenized captions (num_captions, context_length) int64 -> their trie. The end token is the largest of its row."""
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node
    depths, parents, ends = [], [], []
    for row, end in zip(tokens.tolist(), tokens.argmax(1).tolist(), strict=True):
        node = -1
        for depth, token in enumerate(row[: end + 1]):
            key = (node, token)
            if key not in nodes:
                nodes[key] = len(nodes)
                depths.append(depth)
                parents.append(node)
            node = nodes[key]
        ends.append(node)
    sees = torch.eye(len(nodes), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[node] |= sees[parent]
    return Trie(torch.tensor([token for _, token in nodes]), torch.tensor(depths), sees, torch.tensor(ends))


def why_not(model: Any) -> str | None:
    """Why the text tower of `model` cannot be computed as a trie; None when it can."""
    root, _ = text_root(model)
    if not hasattr(root, "transformer") or not hasattr(root.transformer, "resblocks"):
        return f"its text tower is a {type(root).__name__}"
    pooling = getattr(root, "text_pool_type", getattr(root, "pool_type", None))
    if root.attn_mask is None or pooling != "argmax" or getattr(root, "cls_emb", None) is not None:
        return "its text tower is not both causal and read at the end token"
    if not all(
        type(block) is ResidualAttentionBlock and type(block.attn) is SplitAttention for block in root.transformer.resblocks
    ):
        return "its text blocks are not CLIP's own"
    return None


def text_root(model: Any) -> tuple[Any, str]:
    """The module that holds the text tower's parts, and the prefix of their names in `model`."""
    return (model, "") if isinstance(model, open_clip.CLIP) else (model.text, "text.")


class TextTower:
    """Encodes a fixed list of captions under the trained tensors of many clients, on the device of `model`.

    `model` is a split open_clip model for which `why_not` is None; `tokens` (num_captions, context_length) int64.
    """

    def __init__(self, model: Any, tokens: torch.Tensor) -> None:
        root, self.prefix = text_root(model)
        trie, device = build_trie(tokens), root.positional_embedding.device
        self.num_positions = len(trie.tokens)  # text positions that each client computes
        self.tokens, self.depths = trie.tokens.to(device), trie.depths.to(device)
        self.sees, self.ends = trie.sees.to(device), trie.ends.to(device)
        self.table, self.positions = root.token_embedding.weight, root.positional_embedding
        with torch.no_grad():
            self.embedded = (self.table[self.tokens] + self.positions[self.depths])[None]  # alike for all clients
        self.blocks, self.ln_final, self.projection = root.transformer.resblocks, root.ln_final, root.text_projection

    def __call__(
        self, adapters: Mapping[str, Lora] = NONE, weights: Mapping[str, torch.Tensor] = NONE, context: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Unit-length features (num_clients, num_captions, embed_dim) of all captions.

        `adapters` maps a Linear layer of the model, such as `transformer.resblocks.0.attn.out_proj`, to its updates; `weights` maps
        names of the tower's parameters to each client's own values (num_clients, *shape), all of them or none. Where neither is
        given, all clients share one row of the batch. `context` (num_clients, n, width) stands in for the embeddings of tokens
        1..n, which must be alike in all captions.
        """
        tower = _Layers(self.prefix, adapters, weights)
        x, sees = self._embed(tower, context), self.sees
        for i, block in enumerate(self.blocks):
            at = f"transformer.resblocks.{i}"
            last = i == len(self.blocks) - 1
            normed = tower.norm(x, block.ln_1, f"{at}.ln_1")
            asking = normed[:, self.ends] if last else normed
            mixed = attend_across(
                tower.linear(asking, block.attn.q_proj, f"{at}.attn.q_proj"),
                tower.linear(normed, block.attn.k_proj, f"{at}.attn.k_proj"),
                tower.linear(normed, block.attn.v_proj, f"{at}.attn.v_proj"),
                block.attn.num_heads,
                sees[self.ends] if last else sees,
            )
            mixed = tower.linear(mixed, block.attn.out_proj, f"{at}.attn.out_proj")
            x = (x[:, self.ends] if last else x) + tower.scale(mixed, block.ls_1, f"{at}.ls_1")
            hidden = tower.linear(tower.norm(x, block.ln_2, f"{at}.ln_2"), block.mlp.c_fc, f"{at}.mlp.c_fc")
            hidden = tower.linear(block.mlp.gelu(hidden), block.mlp.c_proj, f"{at}.mlp.c_proj")
            x = x + tower.scale(hidden, block.ls_2, f"{at}.ls_2")
        x = tower.norm(x, self.ln_final, "ln_final")
        if isinstance(self.projection, Projection):
            x = tower.linear(x, self.projection.linear, "text_projection.linear")
        elif self.projection is not None:
            x = tower.linear(x, self.projection, "text_projection")
        return F.normalize(x, dim=-1)

    def _embed(self, tower: "_Layers", context: torch.Tensor | None) -> torch.Tensor:
        """What the first block sees: (num_clients or 1, num_positions, width)."""
        if context is not None:
            n = context.shape[1]
            head, tail = (part.expand(len(context), -1, -1) for part in (self.embedded[:, :1], self.embedded[:, n + 1 :]))
            return torch.cat([head, context + self.positions[1 : n + 1], tail], dim=1)
        table, positions = tower.own("token_embedding.weight"), tower.own("positional_embedding")
        if table is None or positions is None:
            return self.embedded  # type: ignore[no-any-return]
        return table[:, self.tokens] + positions[:, self.depths]


class _Layers:
    """The text tower's layers: frozen ones for all clients at once, or each client's own, with or without a low-rank update."""

    def __init__(self, prefix: str, adapters: Mapping[str, Lora], weights: Mapping[str, torch.Tensor]) -> None:
        self.prefix, self.adapters, self.weights = prefix, adapters, weights

    def own(self, name: str) -> torch.Tensor | None:
        """Each client's own values of a parameter."""
        return self.weights.get(self.prefix + name)

    def linear(self, x: torch.Tensor, layer: nn.Module, path: str) -> torch.Tensor:
        """(num_clients or 1, length, in) -> the same with out: one large product for a frozen W, batched ones for the rest."""
        weight, bias, lora = self.own(f"{path}.weight"), self.own(f"{path}.bias"), self.adapters.get(self.prefix + path)
        if weight is None:
            y: torch.Tensor = layer(x)
        elif bias is None:
            y = x @ weight.transpose(1, 2)
        else:
            y = torch.baddbmm(bias[:, None], x.expand(len(weight), -1, -1), weight.transpose(1, 2))
        return y if lora is None else y + lora(x)

    def norm(self, x: torch.Tensor, layer: Any, path: str) -> torch.Tensor:
        weight, bias = self.own(f"{path}.weight"), self.own(f"{path}.bias")
        if weight is None or bias is None:
            y: torch.Tensor = layer(x)
            return y
        return F.layer_norm(x, layer.normalized_shape, None, None, layer.eps) * weight[:, None] + bias[:, None]

    def scale(self, x: torch.Tensor, layer: nn.Module, path: str) -> torch.Tensor:
        gamma = self.own(f"{path}.gamma")
        y: torch.Tensor = layer(x) if gamma is None else x * gamma[:, None]
        return y


def attend_across(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, sees: torch.Tensor) -> torch.Tensor:
    """`attend` where some of the three still have one row for all clients."""
    num_clients = max(len(q), len(k), len(v))
    q, k, v = (x.expand(num_clients, -1, -1) for x in (q, k, v))
    return attend(q, k, v, num_heads, sees)
