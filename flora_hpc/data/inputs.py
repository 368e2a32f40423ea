"""What a training step is fed: the features of images, or their pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from flora_hpc.data.images import Images

MAX_KEPT_BYTES = 2**30  # of preprocessed pixels; more than this is read again whenever it is needed


class Inputs(Protocol):
    """Images by index."""

    @property
    def block(self) -> int:
        """Images scored at once; fixed, because the shape of a matrix product may decide its last bits."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Indices (...) int64 -> what a method sees of these images, (..., *shape) float32."""


@dataclass(frozen=True)
class Features:
    """Features of all images (num_images, embed_dim) float32, on the device that trains."""

    values: torch.Tensor
    block: int = 16384

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """(...) int64 -> (..., embed_dim)."""
        return self.values[rows]


class Pixels:
    """Preprocessed pixels, read when first needed, and kept if all of them fit into a gibibyte."""

    block = 256

    def __init__(self, images: Images, preprocess: Callable[[Any], torch.Tensor], device: torch.device) -> None:
        self._images, self._preprocess, self._device = images, preprocess, device
        self._kept: dict[int, torch.Tensor] | None = None  # None until the size of an image is known

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """(...) int64 -> (..., 3, height, width)."""
        wanted = rows.flatten().tolist()
        kept = self._kept or {}
        missing = sorted({row for row in wanted if row not in kept})
        read = dict(zip(missing, map(self._preprocess, self._images.read(missing)), strict=True))
        if self._kept is None and read:
            size = next(iter(read.values())).nbytes * len(self._images.labels)
            self._kept = {} if size <= MAX_KEPT_BYTES else None
        if self._kept is not None:
            self._kept.update(read)
        pixels = torch.stack([kept[row] if row in kept else read[row] for row in wanted])
        return pixels.to(self._device).view(*rows.shape, *pixels.shape[1:])
