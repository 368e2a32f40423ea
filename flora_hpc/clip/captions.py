"""The text tower on captions of which a step needs only some: those of its own images, where every image has a caption of its own.

There may be millions of them, so there is no tree. Each client's captions of a step are computed side by side, up to the longest
of them; towers that are not CLIP's own kind compute them at full length.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from flora_hpc.clip.attention import attend
from flora_hpc.clip.lora import Lora
from flora_hpc.clip.text import NONE, Layers, Parts, through, why_not
from flora_hpc.clip.towers import encode

AT_ONCE = 1024  # captions, where all of them are wanted; fixed, because the shape of a product may decide its last bits


class OwnCaptions:
    """Encodes captions by number under the trained tensors of many clients, on the device of `model`, a split open_clip model."""

    num_positions = num_alone = 0  # that a client computes whatever its batch
    shape = (0, 0)

    def __init__(self, model: Any, tokens: torch.Tensor) -> None:
        """`tokens` (num_captions, context_length) int64."""
        self.model, self.reason = model, why_not(model)
        self.ends = tokens.argmax(1)  # as CLIP finds them: the end token has the largest number
        self.caption_positions = int(self.ends.max()) + 1 if self.reason is None else tokens.shape[1]
        self.tokens = tokens[:, : self.caption_positions].int()

    def __call__(
        self, adapters: Mapping[str, Lora] = NONE, weights: Mapping[str, torch.Tensor] = NONE, *, wanted: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Unit-length features (num_clients, batch, embed_dim) of the captions `wanted` (num_clients or 1, batch) int64.

        Without `wanted` they are those of all captions, (num_clients or 1, num_captions, embed_dim). For the rest see `TextTower`.
        """
        if wanted is None:
            wanted = torch.arange(len(self.tokens))[None]
        parts = [self._some(adapters, weights, part.cpu()) for part in torch.split(wanted, AT_ONCE, dim=1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _some(self, adapters: Mapping[str, Lora], weights: Mapping[str, torch.Tensor], wanted: torch.Tensor) -> torch.Tensor:
        device = next(self.model.parameters()).device
        if self.reason is not None:
            tokens = self.tokens[wanted].long().to(device)
            return F.normalize(encode(self.model, "encode_text", tokens, adapters, weights), dim=-1)
        ends = self.ends[wanted]
        length = self.caption_positions  # of the longest of all: what lies beside a client's captions must not change its shapes
        tokens = self.tokens[wanted][:, :, :length].long().flatten(1)
        lines = Lines(ends.to(device), length)
        parts = Parts.of(self.model)
        layers = Layers(parts.prefix, adapters, weights)
        depths = torch.arange(length, device=device).repeat(wanted.shape[1])
        return through(parts, layers, layers.embed(parts, tokens.to(device), depths), lines)


@dataclass(frozen=True)
class Lines:
    """Captions side by side: each client's positions are those of its first caption, then of its second, ..., all of one length."""

    ends: torch.Tensor  # (num_clients or 1, batch) int64, the place of each caption's end token
    length: int

    def at_ends(self, x: torch.Tensor) -> torch.Tensor:
        """(num_clients, batch * length, width) -> (num_clients, batch, width)."""
        by_caption = x.view(len(x), -1, self.length, x.shape[-1])
        places = self.ends[:, :, None, None].expand(len(x), -1, 1, x.shape[-1])
        return by_caption.gather(2, places).squeeze(2)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, last: bool) -> torch.Tensor:
        """Each caption attends to itself, up to where it is. In the last block only the end tokens ask."""
        num_clients = max(len(q), len(k), len(v))
        q, k, v = (x.expand(num_clients, -1, -1) for x in (q, k, v))
        before = torch.arange(self.length, device=q.device)
        asking = self.ends.expand(num_clients, -1).flatten()[:, None, None, None] if last else before[:, None]
        fq, fk, fv = (x.reshape(num_clients * self.ends.shape[1], -1, x.shape[-1]) for x in (q, k, v))
        return attend(fq, fk, fv, num_heads, before <= asking).reshape(q.shape)
