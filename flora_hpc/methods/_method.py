"""What a method is: trained tensors, their initial values, and a forward pass for many clients at once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Method:
    """One way to adapt a CLIP. Clients train `num_params` numbers each; everything else is frozen and shared.

    `logits(tensors, features)`: tensors (num_clients, *shape) by name and image features (num_clients, batch, embed_dim)
    give scaled class scores (num_clients, batch, num_classes), each client under its own tensors.
    """

    shapes: Mapping[str, tuple[int, ...]]
    init: Callable[[np.random.Generator], dict[str, torch.Tensor]]
    logits: Callable[[Tensors, torch.Tensor], torch.Tensor]
    alpha: float  # scale of low-rank updates, as the adapter on disk must know it

    @property
    def num_params(self) -> int:
        """Trained numbers of one client."""
        return sum(map(prod, self.shapes.values()))

    @property
    def payload_bytes(self) -> int:
        """An adapter or an update as float32, without any header."""
        return 4 * self.num_params

    def unpack(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """(..., num_params) -> {name: (..., *shape)}, in the order of `shapes`; one split, so autograd joins gradients once."""
        parts = torch.split(flat, [prod(shape) for shape in self.shapes.values()], dim=-1)
        return {
            name: part.reshape(*flat.shape[:-1], *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def pack(self, tensors: Tensors) -> torch.Tensor:
        """The inverse of `unpack` for one client: {name: shape} -> (num_params,) float32."""
        return torch.cat([tensors[name].reshape(-1) for name in self.shapes]).float()
