"""The inputs of a training step: features of images, or their pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from flora_hpc.data.decode import DamagedError, Loader
from flora_hpc.data.images import Images
from flora_hpc.errors import UserError

MAX_KEPT_BYTES = 2**30  # of preprocessed pixels; larger data are read again for every step


class Inputs(Protocol):
    """Row -> features or pixels of an image."""

    @property
    def block(self) -> int:
        """Images scored in one matrix product; fixed, because its shape may decide the last bits."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (...) int64 -> features or pixels of these images, (..., *shape) float32."""


@dataclass(frozen=True)
class Features:
    """Features of all images (num_images, embed_dim), float32 or bfloat16, on the training device or mapped from a file.

    Features that do not fit into a GPU stay on its host. Each step then copies its rows to the GPU, and the host waits.
    """

    values: torch.Tensor
    block: int = 16384

    @classmethod
    def near(cls, values: torch.Tensor, device: torch.device) -> "Features":
        """Move the features to `device` if they take at most half of its free memory; else leave them."""
        if device.type == "cuda" and values.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
            return cls(values)
        return cls(values.to(device))

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """(...) int64 -> (..., embed_dim) on the device of `rows`."""
        if rows.device == self.values.device:
            return self.values[rows].float()
        return self.values[rows.cpu()].pin_memory().to(rows.device, non_blocking=True).float()


class Pixels:
    """Preprocessed pixels, read by `num_threads` threads on first use; kept in memory if all fit into a gibibyte."""

    block = 256

    def __init__(
        self, images: Images, preprocess: Callable[[Any], torch.Tensor], device: torch.device, num_threads: int = 1
    ) -> None:
        self._images, self._device = images, device
        self._loader = Loader(images, preprocess, num_threads)
        self._kept: dict[int, torch.Tensor] | None = None  # None until the size of an image is known

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """(...) int64, best on the host -> (..., 3, height, width).

        Raises UserError for an image that has been damaged since the run began.
        """
        requested = rows.flatten().tolist()
        kept = self._kept or {}
        read = self._read(sorted({row for row in requested if row not in kept}))
        if self._kept is None and read:
            size = next(iter(read.values())).nbytes * len(self._images)
            self._kept = {} if size <= MAX_KEPT_BYTES else None
        if self._kept is not None:
            self._kept.update(read)
        pixels = torch.stack([kept[row] if row in kept else read[row] for row in requested])
        return pixels.to(self._device).view(*rows.shape, *pixels.shape[1:])

    def _read(self, missing: list[int]) -> dict[int, torch.Tensor]:
        """Read, decode and preprocess the images `missing`. Raises UserError for a damaged one."""
        pixels = {}
        for rows, images in self._loader.blocks([missing] if missing else []):
            for row, image in zip(rows, images, strict=True):
                if isinstance(image, DamagedError):
                    raise UserError(
                        f"{self._images.where(row)} can no longer be decoded: {image}; the data must not change in a run"
                    )
                pixels[row] = image
        return pixels
