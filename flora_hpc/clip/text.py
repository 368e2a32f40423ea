"""The text tower for many clients at once: each distinct token of each distinct caption is encoded once.

A CLIP text tower is causal and reads its feature at the end token, so what a position holds depends on the tokens before it and on
nothing after it. The captions of a run are therefore laid out as a trie: captions that begin alike share the nodes of their common
beginning, equal captions share all, and padding does not occur. A node attends to itself and its ancestors. This gives the same
features as encoding every padded caption by itself, to rounding. In the last block only the end nodes are computed further.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from torch import nn

from flora_hpc.clip.attention import SplitAttention, attend
from flora_hpc.errors import UserError


class Lora(NamedTuple):
    """A low-rank update of one projection for each client: down (num_clients, rank, in), up (num_clients, out, rank)."""

    down: torch.Tensor
    up: torch.Tensor


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


def check_supported(model: open_clip.CLIP, name: str) -> None:
    """Raise UserError unless the text tower is open_clip's own: causal, read at the end token."""
    causal = isinstance(model, open_clip.CLIP) and model.attn_mask is not None and model.text_pool_type == "argmax"
    if not causal or not all(isinstance(block.attn, SplitAttention) for block in model.transformer.resblocks):
        raise UserError(
            f"model.name: {name} has a text tower that is not CLIP's causal one (it is {type(model).__name__}); "
            "take a CLIP model such as ViT-B-32, ViT-L-14 or flora-tiny"
        )


class TextTower:
    """Encodes a fixed list of captions under the adapters of many clients, with the weights and on the device of `model`."""

    def __init__(self, model: open_clip.CLIP, tokens: torch.Tensor) -> None:
        trie, device = build_trie(tokens), model.positional_embedding.device
        with torch.no_grad():
            embedded = model.token_embedding(trie.tokens.to(device)) + model.positional_embedding[trie.depths.to(device)]
        self.num_nodes = len(trie.tokens)  # text positions that each client computes
        self.embedded = embedded[None]  # (1, num_nodes, width): alike for all clients until an adapter acts
        self.sees, self.ends = trie.sees.to(device), trie.ends.to(device)
        self.blocks, self.ln_final, self.projection = model.transformer.resblocks, model.ln_final, model.text_projection

    def __call__(self, adapters: Mapping[str, Lora], alpha: float) -> torch.Tensor:
        """Unit-length features (num_clients, num_captions, embed_dim) of all captions.

        `adapters` maps a projection such as `transformer.resblocks.0.attn.out_proj` to its updates:
        y = W x + b + alpha * up (down x). Where it names none, all clients share one row of the batch.
        """
        x, sees = self.embedded, self.sees
        for i, block in enumerate(self.blocks):
            at = f"transformer.resblocks.{i}"

            def project(y: torch.Tensor, layer: nn.Linear, path: str, at: str = at) -> torch.Tensor:
                return _lora_linear(y, layer, adapters.get(f"{at}.{path}"), alpha)

            last = i == len(self.blocks) - 1
            normed = block.ln_1(x)
            asking = normed[:, self.ends] if last else normed
            mixed = attend_across(
                project(asking, block.attn.q_proj, "attn.q_proj"),
                project(normed, block.attn.k_proj, "attn.k_proj"),
                project(normed, block.attn.v_proj, "attn.v_proj"),
                block.attn.num_heads,
                sees[self.ends] if last else sees,
            )
            x = (x[:, self.ends] if last else x) + block.ls_1(project(mixed, block.attn.out_proj, "attn.out_proj"))
            hidden = block.mlp.gelu(project(block.ln_2(x), block.mlp.c_fc, "mlp.c_fc"))
            x = x + block.ls_2(project(hidden, block.mlp.c_proj, "mlp.c_proj"))
        x = self.ln_final(x)
        x = self.projection(x) if isinstance(self.projection, nn.Linear) else x @ self.projection
        return F.normalize(x, dim=-1)


def attend_across(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, sees: torch.Tensor) -> torch.Tensor:
    """`attend` where some of the three still have one row for all clients."""
    num_clients = max(len(q), len(k), len(v))
    q, k, v = (x.expand(num_clients, -1, -1) for x in (q, k, v))
    return attend(q, k, v, num_heads, sees)


def _lora_linear(x: torch.Tensor, layer: nn.Linear, lora: Lora | None, alpha: float) -> torch.Tensor:
    """(num_clients or 1, length, in) -> the same with out: one large product for W, a batched one for the adapters."""
    y: torch.Tensor = layer(x)
    if lora is None:
        return y
    update: torch.Tensor = (x @ lora.down.transpose(1, 2) * alpha) @ lora.up.transpose(1, 2)
    return y + update
