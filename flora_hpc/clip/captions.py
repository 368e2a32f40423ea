"""The text tower for data where every image has its own caption: a step encodes the captions of its batch only.

There may be millions of captions, so they form no tree. Each client's captions of a step are computed side by side, as long as the
longest caption of all. A tower that is not CLIP's own kind computes them at full length.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from flora_hpc.clip.attention import attend
from flora_hpc.clip.lora import Lora
from flora_hpc.clip.text import NONE, Layers, Parts, run_blocks, why_not
from flora_hpc.clip.towers import encode

AT_ONCE = 1024  # captions at a time; fixed, because the shape of a product may decide its last bits


class OwnCaptions:
    """Encodes captions by number under the trained tensors of many clients, on the device of an unfused open_clip `model`."""

    num_positions = num_alone = 0  # no text position is computed for all captions
    shape = (0, 0)

    def __init__(self, model: Any, tokens: torch.Tensor) -> None:
        """`tokens` (num_captions, context_length) int64."""
        self.model, self.reason = model, why_not(model)
        self.ends = tokens.argmax(1)  # CLIP's end token has the largest number
        self.caption_positions = int(self.ends.max()) + 1 if self.reason is None else tokens.shape[1]
        self.tokens = tokens[:, : self.caption_positions].int()

    def __call__(
        self,
        adapters: Mapping[str, Lora] = NONE,
        weights: Mapping[str, torch.Tensor] = NONE,
        *,
        caption_rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Unit-length features (num_clients, batch, embed_dim) of the captions `caption_rows` (num_clients or 1, batch) int64.

        None means all captions: (num_clients or 1, num_captions, embed_dim). `TextTower` explains `adapters` and `weights`.
        """
        if caption_rows is None:
            caption_rows = torch.arange(len(self.tokens))[None]
        parts = [self._encode(adapters, weights, part.cpu()) for part in torch.split(caption_rows, AT_ONCE, dim=1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _encode(self, adapters: Mapping[str, Lora], weights: Mapping[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        device = next(self.model.parameters()).device
        if self.reason is not None:
            tokens = self.tokens[rows].long().to(device)
            return F.normalize(encode(self.model, "encode_text", tokens, adapters, weights), dim=-1)
        ends = self.ends[rows]
        length = self.caption_positions  # of the longest caption of all: other clients must not change a client's shapes
        tokens = self.tokens[rows][:, :, :length].long().flatten(1)
        lines = Lines(ends.to(device), length)
        parts = Parts.of(self.model)
        layers = Layers(parts.prefix, adapters, weights)
        depths = torch.arange(length, device=device).repeat(rows.shape[1])
        return run_blocks(parts, layers, layers.embed(parts, tokens.to(device), depths), lines)


@dataclass(frozen=True)
class Lines:
    """Captions side by side: a client's positions are its first caption, then its second, ..., all of one length."""

    ends: torch.Tensor  # (num_clients or 1, batch) int64, the place of each caption's end token
    length: int

    def at_ends(self, x: torch.Tensor) -> torch.Tensor:
        """(num_clients, batch * length, width) -> (num_clients, batch, width)."""
        by_caption = x.view(len(x), -1, self.length, x.shape[-1])
        places = self.ends[:, :, None, None].expand(len(x), -1, 1, x.shape[-1])
        return by_caption.gather(2, places).squeeze(2)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, last: bool) -> torch.Tensor:
        """Causal attention within each caption. If `last`, `q` has the end tokens only."""
        num_clients = max(len(q), len(k), len(v))
        q, k, v = (x.expand(num_clients, -1, -1) for x in (q, k, v))
        positions = torch.arange(self.length, device=q.device)
        query_positions = self.ends.expand(num_clients, -1).flatten()[:, None, None, None] if last else positions[:, None]
        fq, fk, fv = (x.reshape(num_clients * self.ends.shape[1], -1, x.shape[-1]) for x in (q, k, v))
        return attend(fq, fk, fv, num_heads, positions <= query_positions).reshape(q.shape)
