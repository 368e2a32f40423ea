"""Both towers of any open_clip model, for many clients at once.

The text tower is a trie (`text.TextTower`) where the model allows it. Otherwise, and for images, the model's own code runs.
Clients with low-rank updates are computed in one batch, clients with their own weights one after the other.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from flora_hpc.clip.frozen import FrozenProducts, tensor_cores
from flora_hpc.clip.lora import Lora, attached
from flora_hpc.clip.steady import SteadyProducts
from flora_hpc.clip.text import NONE, TextTower, why_not

POSITIONS_AT_ONCE = {"cpu": 2**9, "cuda": 2**14}  # of images; more of them were not faster on 2 cores, and take more memory


class PlainText:
    """Any text tower with the interface of TextTower: the model's own code encodes each distinct caption at full length."""

    caption_positions = 0

    def __init__(self, model: Any, tokens: torch.Tensor) -> None:
        self.model, self.reason = model, why_not(model)
        distinct, rows = torch.unique(tokens, dim=0, return_inverse=True)
        device = next(model.parameters()).device
        self.tokens, self.rows = distinct.to(device), rows.to(device)
        self.num_positions = distinct.numel()
        self.num_alone, self.shape = 0, (0, 0)  # a single caption cannot be encoded

    def __call__(
        self,
        adapters: Mapping[str, Lora] = NONE,
        weights: Mapping[str, torch.Tensor] = NONE,
        *,
        caption_rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Unit-length features (num_clients, num_captions, embed_dim) of all captions, as TextTower's."""
        assert caption_rows is None
        features = encode(self.model, "encode_text", self.tokens[None], adapters, weights)
        return F.normalize(features, dim=-1)[:, self.rows]


def text_tower(model: Any, tokens: torch.Tensor) -> TextTower | PlainText:
    """The fastest tower for the captions `tokens` (num_captions, context_length) int64 that `model` allows."""
    return TextTower(model, tokens) if why_not(model) is None else PlainText(model, tokens)


def encode(
    model: Any, entry: str, x: torch.Tensor, adapters: Mapping[str, Lora] = NONE, weights: Mapping[str, torch.Tensor] = NONE
) -> torch.Tensor:
    """`model.encode_image` or `model.encode_text` for many clients: (num_clients or 1, batch, ...) -> (num_clients, batch, dim).

    Clients differ by `adapters`, by `weights` (each client's own values of parameters, (num_clients, *shape)), or not at all.
    """
    assert not (adapters and weights)
    num_clients = max([len(x)] + [len(lora.down) for lora in adapters.values()] + [len(values) for values in weights.values()])
    if not weights:
        folded = x.expand(num_clients, *x.shape[1:]).flatten(0, 1)
        with attached(model, adapters, num_clients), FrozenProducts():
            features: torch.Tensor = getattr(model, entry)(folded, normalize=False)
        return features.view(num_clients, -1, features.shape[-1])
    x = x.expand(num_clients, *x.shape[1:])
    by_client = ({f"model.{name}": values[k] for name, values in weights.items()} for k in range(num_clients))
    with SteadyProducts():
        return torch.stack([functional_call(_Entry(model, entry), named, (x[k],)) for k, named in enumerate(by_client)])


class _Entry(nn.Module):
    """A module whose forward is an encoder of a CLIP, since functional_call calls forward."""

    def __init__(self, model: nn.Module, entry: str) -> None:
        super().__init__()
        self.model, self.entry = model, entry

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = getattr(self.model, self.entry)(x, normalize=False)
        return features


def image_features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The frozen image tower's features (num_images, embed_dim), not normalised, of pixels (num_images, 3, height, width).

    The features are float32 whatever the number format of the tower's products.
    """
    with torch.inference_mode(), FrozenProducts(), tensor_cores(False):
        features: torch.Tensor = model.encode_image(pixels, normalize=False)
        return features


def images_at_once(model: Any, device: torch.device) -> int:
    """How many images the frozen image tower encodes in one batch; the shape of a product may decide its last bits."""
    return max(1, POSITIONS_AT_ONCE[device.type] // num_image_positions(model))


def num_image_positions(model: Any) -> int:
    """About how many positions of one image pass through the image tower's blocks."""
    positions = getattr(model.visual, "positional_embedding", None)
    if positions is not None:
        return len(positions)
    size = model.visual.image_size
    height, width = size if isinstance(size, tuple) else (size, size)
    return int(height * width // 256)  # as a transformer with patches of 16 x 16
