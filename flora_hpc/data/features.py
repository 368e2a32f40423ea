"""Every image's feature, computed once, by all ranks together.

A frozen image tower without augmentation gives one feature per image, for all rounds, epochs and clients.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flora_hpc.data.images import Images

Floats = npt.NDArray[np.float32]
BLOCK = 256  # images encoded at once; fixed, because the shape of a matrix product may decide its last bits


def encode(
    images: Images, model: Any, preprocess: Callable[[Any], torch.Tensor], device: torch.device, rank: int, size: int
) -> Floats:
    """This rank's share of the features as the tower gives them, (num_encoded, embed_dim) float32. Blocks go to ranks in turn.

    `model` is an open_clip model on `device`; `preprocess` makes (3, height, width) float32 from an RGB image.
    """
    starts = range(0, len(images.labels), BLOCK)[rank::size]
    encoded = [np.empty((0, 0), np.float32)]
    with torch.inference_mode():
        for start in starts:
            pixels = torch.stack([preprocess(image) for image in images.read(range(start, min(start + BLOCK, len(images.labels))))])
            encoded.append(model.encode_image(pixels.to(device), normalize=False).float().cpu().numpy())
    return np.concatenate(encoded[1:] or encoded)


def assemble(shares: list[bytes], num_images: int) -> Floats:
    """Put every rank's share (float32 bytes, by rank) in the order of the images: (num_images, embed_dim) float32."""
    features = np.empty((num_images, sum(map(len, shares)) // 4 // num_images), np.float32)
    for rank, share in enumerate(shares):
        rows = np.frombuffer(share, np.float32).reshape(-1, features.shape[1])
        taken = 0
        for start in range(0, num_images, BLOCK)[rank :: len(shares)]:
            block = features[start : start + BLOCK]
            block[:] = rows[taken : taken + len(block)]
            taken += len(block)
    return features
