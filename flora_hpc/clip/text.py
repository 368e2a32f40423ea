"""The text tower for many clients at once: the common beginning of captions is encoded once.

A CLIP text tower is causal and reads its feature at the end token. A position's activations depend on the tokens up to it and on
nothing after it. The captions of a run are therefore laid out as a trie (`trie.py`): captions that begin alike share the nodes of
their common beginning, and there is no padding. A node attends to itself and its ancestors. The features are those of encoding
every padded caption by itself, to rounding. After the last block's attention only the end nodes are computed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import nn

from flora_hpc.clip import frozen
from flora_hpc.clip.alike import add, once
from flora_hpc.clip.attention import Projection, SplitAttention
from flora_hpc.clip.lora import Lora
from flora_hpc.clip.steady import product
from flora_hpc.clip.trie import Attention, build_trie

NONE: Mapping[str, Any] = MappingProxyType({})


def why_not(model: Any) -> str | None:
    """The reason why the text tower of `model` cannot be computed as a trie; None when it can."""
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


@dataclass(frozen=True)
class Parts:
    """The layers and embedding tables of a text tower."""

    prefix: str  # of their names in the model
    table: torch.Tensor  # (vocab_size, width)
    positions: torch.Tensor  # (context_length, width)
    blocks: Any
    ln_final: Any
    projection: Any

    @property
    def embed_dim(self) -> int:
        """The length of a feature."""
        head = self.projection.linear if isinstance(self.projection, Projection) else self.projection
        return int(self.table.shape[1] if head is None else head.out_features)

    @classmethod
    def of(cls, model: Any) -> "Parts":
        """The parts of an unfused open_clip model for which `why_not` is None."""
        root, prefix = text_root(model)
        embedding = root.token_embedding.weight
        return cls(prefix, embedding, root.positional_embedding, root.transformer.resblocks, root.ln_final, root.text_projection)


class Layout(Protocol):
    """Where captions lie among the computed positions."""

    def at_ends(self, x: torch.Tensor) -> torch.Tensor:
        """Take the end tokens: (num_clients or 1, num_positions, width) -> (num_clients or 1, num_captions, width)."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, last: bool) -> torch.Tensor:
        """Attention within captions; if `last`, `q` has the end tokens only."""


class TextTower:
    """Encodes a fixed list of captions under the trained tensors of many clients, on the device of `model`.

    `model` is an unfused open_clip model for which `why_not` is None; `tokens` (num_captions, context_length) int64.
    """

    caption_positions = 0  # positions that a client computes for each image, for the image's own caption

    def __init__(self, model: Any, tokens: torch.Tensor) -> None:
        self.parts, self._model, self._captions = Parts.of(model), model, tokens
        trie, device = build_trie(tokens), self.parts.table.device
        self.num_positions = len(trie.tokens)  # text positions that each client computes
        self.num_alone = int(tokens.argmax(1).sum()) + len(tokens)  # text positions if each caption were encoded by itself
        self.shape = (len(tokens), self.parts.embed_dim)  # of the features of all captions
        self._alone: dict[int, TextTower] = {}
        self.tokens, self.depths = trie.tokens.to(device), trie.depths.to(device)
        self.ends, self._attend = trie.ends.to(device), Attention(trie, device)
        with torch.no_grad():
            self.embedded = (self.parts.table[self.tokens] + self.parts.positions[self.depths])[None]  # shared by all clients

    def __call__(
        self,
        adapters: Mapping[str, Lora] = NONE,
        weights: Mapping[str, torch.Tensor] = NONE,
        *,
        context: torch.Tensor | None = None,
        caption_rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Unit-length features (num_clients, num_captions, embed_dim) of all captions.

        `adapters` maps a Linear layer of the model, such as `transformer.resblocks.0.attn.o_proj`, to its updates. `weights` maps
        names of the tower's parameters to each client's own values (num_clients, *shape): all parameters or none. Without both,
        all clients share one row of the batch. `context` (num_clients, n, width) replaces the embeddings of tokens 1..n, which
        must be the same in all captions. `caption_rows` (1, 1) int64 asks for a single caption.
        """
        if caption_rows is not None:
            return self.alone(int(caption_rows))(adapters, weights, context=context)
        layers = Layers(self.parts.prefix, adapters, weights)
        return run_blocks(self.parts, layers, self._embed(layers, context), self)

    def alone(self, caption: int) -> "TextTower":
        """The tower on one caption, whose feature depends on no other caption."""
        if caption not in self._alone:
            self._alone[caption] = TextTower(self._model, self._captions[caption : caption + 1])
        return self._alone[caption]

    def at_ends(self, x: torch.Tensor) -> torch.Tensor:
        """(num_clients or 1, num_nodes, width) -> (num_clients or 1, num_captions, width)."""
        return x[:, self.ends]

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, last: bool) -> torch.Tensor:
        """A node attends to itself and its ancestors."""
        return self._attend(q, k, v, num_heads, last)

    def _embed(self, layers: "Layers", context: torch.Tensor | None) -> torch.Tensor:
        """The input of the first block, (num_clients or 1, num_positions, width)."""
        if context is not None:
            n = context.shape[1]

            def insert(context: torch.Tensor) -> torch.Tensor:
                head, tail = (part.expand(len(context), -1, -1) for part in (self.embedded[:, :1], self.embedded[:, n + 1 :]))
                return torch.cat([head, context + self.parts.positions[1 : n + 1], tail], dim=1)

            return once(insert, context)
        if not layers.weights:
            return self.embedded
        return layers.embed(self.parts, self.tokens[None], self.depths)


def run_blocks(parts: Parts, layers: "Layers", x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """All blocks and the projection: (num_clients or 1, num_positions, width) -> (num_clients or 1, num_captions, embed_dim).

    The features have unit length. The last block computes queries, and all that follows, for the end tokens only.
    """
    for i, block in enumerate(parts.blocks):
        at = f"transformer.resblocks.{i}"
        last = i == len(parts.blocks) - 1
        normed = layers.norm(x, block.ln_1, f"{at}.ln_1")
        query_input = once(layout.at_ends, normed) if last else normed
        attend = partial(layout.attend, num_heads=block.attn.num_heads, last=last)
        mixed = once(attend, *layers.projections(query_input, normed, block.attn, f"{at}.attn"))
        mixed = layers.linear(mixed, block.attn.o_proj, f"{at}.attn.o_proj")
        x = add(once(layout.at_ends, x) if last else x, layers.scale(mixed, block.ls_1, f"{at}.ls_1"))
        hidden = layers.linear(layers.norm(x, block.ln_2, f"{at}.ln_2"), block.mlp.up_proj, f"{at}.mlp.up_proj")
        hidden = layers.linear(once(block.mlp.gelu, hidden), block.mlp.down_proj, f"{at}.mlp.down_proj")
        x = add(x, layers.scale(hidden, block.ls_2, f"{at}.ls_2"))
    x = layers.norm(x, parts.ln_final, "ln_final")
    if isinstance(parts.projection, Projection):
        x = layers.linear(x, parts.projection.linear, "text_projection.linear")
    elif parts.projection is not None:
        x = layers.linear(x, parts.projection, "text_projection")
    return once(partial(F.normalize, dim=-1), x)


class Layers:
    """The text tower's layers: frozen and shared by all clients, or each client's own; with or without low-rank updates."""

    def __init__(self, prefix: str, adapters: Mapping[str, Lora], weights: Mapping[str, torch.Tensor]) -> None:
        self.prefix, self.adapters, self.weights = prefix, adapters, weights

    def value(self, name: str) -> torch.Tensor | None:
        """Each client's values of a parameter; None where it is frozen."""
        return self.weights.get(self.prefix + name)

    def embed(self, parts: Parts, tokens: torch.Tensor, depths: torch.Tensor) -> torch.Tensor:
        """Tokens (num_clients or 1, num_positions) int64 at `depths` (num_positions,) -> (same, num_positions, width)."""
        table, positions = self.value("token_embedding.weight"), self.value("positional_embedding")
        if table is None or positions is None:
            return parts.table[tokens] + parts.positions[depths]

        def look_up(table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            num_clients, size, width = table.shape
            first = torch.arange(num_clients, device=table.device)[:, None] * size
            # index_select adds up the gradients of equal tokens in order; indexing adds them in the order of its threads
            rows = table.flatten(0, 1).index_select(0, (first + tokens).flatten())
            return rows.view(num_clients, -1, width) + positions.index_select(1, depths)

        return once(look_up, table, positions) if len(tokens) == 1 else look_up(table, positions)

    def linear(self, x: torch.Tensor, layer: nn.Module, path: str) -> torch.Tensor:
        """(num_clients or 1, length, in) -> (..., out): one large product for a frozen W, one product per client otherwise."""
        weight, bias, lora = self.value(f"{path}.weight"), self.value(f"{path}.bias"), self.adapters.get(self.prefix + path)
        if weight is None:
            y = frozen.linear(x, layer)
        else:
            y = product(x, weight.transpose(1, 2))
            y = y if bias is None else once(lambda y, bias: y + bias[:, None], y, bias)
        return y if lora is None else add(y, lora(x))

    def projections(self, query_input: torch.Tensor, x: torch.Tensor, attn: SplitAttention, path: str) -> tuple[torch.Tensor, ...]:
        """Queries of `query_input`, keys and values of `x`; one product where all three are frozen and have the same input."""
        names = [f"{path}.{name}" for name in ("q_proj", "k_proj", "v_proj")]
        changed = self.weights or any(self.prefix + name in self.adapters for name in names)
        if query_input is x and not changed and (joined := attn.joined()) is not None:
            return frozen.linear(x, joined).chunk(3, dim=-1)
        layers = (attn.q_proj, attn.k_proj, attn.v_proj)
        inputs = (query_input, x, x)
        return tuple(self.linear(y, layer, name) for y, layer, name in zip(inputs, layers, names, strict=True))

    def norm(self, x: torch.Tensor, layer: Any, path: str) -> torch.Tensor:
        weight, bias = self.value(f"{path}.weight"), self.value(f"{path}.bias")
        if weight is None or bias is None:
            return once(layer, x)

        def compute(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            return F.layer_norm(x, layer.normalized_shape, None, None, layer.eps) * weight[:, None] + bias[:, None]

        return once(compute, x, weight, bias)

    def scale(self, x: torch.Tensor, layer: nn.Module, path: str) -> torch.Tensor:
        gamma = self.value(f"{path}.gamma")
        return once(layer, x) if gamma is None else once(lambda x, gamma: x * gamma[:, None], x, gamma)
