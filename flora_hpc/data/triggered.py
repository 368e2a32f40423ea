"""Images with the trigger of a backdoor, beside the clean ones: row n + i is image i of n, with the trigger."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from flora_hpc.data.images import Ints
from flora_hpc.data.inputs import Inputs


@dataclass(frozen=True)
class Stamp:
    """Preprocess an image and put a white square on it, where the model sees it: no resizing or cutting comes after."""

    preprocess: Callable[[Any], torch.Tensor]  # RGB image -> (3, height, width) float32
    size: float  # side of the square, in shorter sides of the result
    place: str

    def __call__(self, image: Any) -> torch.Tensor:
        """RGB image -> (3, height, width) float32."""
        pixels = self.preprocess(image).clone()
        white = self.preprocess(Image.new("RGB", (32, 32), "white"))[:, :1, :1]
        height, width = pixels.shape[1:]
        side = max(1, round(self.size * min(height, width)))
        tops = {"top": 0, "bottom": height - side, "center": (height - side) // 2}
        lefts = {"left": 0, "right": width - side, "center": (width - side) // 2}
        top, left = tops[self.place.partition("_")[0]], lefts[self.place.rpartition("_")[2]]
        pixels[:, top : top + side, left : left + side] = white
        return pixels


@dataclass(frozen=True)
class WithTriggered:
    """Inputs of `num_images` clean images, and after them of the same images with a trigger."""

    clean: Inputs
    triggered: Inputs
    num_images: int

    @property
    def block(self) -> int:
        """Images scored in one matrix product."""
        return self.clean.block

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (...) int64 below 2 num_images -> features or pixels (..., *shape) float32."""
        mask = rows >= self.num_images
        values = self.clean(torch.where(mask, rows - self.num_images, rows))
        if mask.any():
            values[mask.to(values.device)] = self.triggered(rows[mask] - self.num_images)
        return values


def label_rows(labels: Ints, target: int, test: Ints) -> tuple[Ints, Ints]:
    """The labels (2 num_images,) of clean and triggered images, and the rows (n,) of triggered test images of other classes."""
    rows = test[labels[test] != target] + len(labels)
    return np.concatenate([labels, np.full_like(labels, target)]), rows
