"""Compute features block by block: a frozen image tower encodes each image once for all rounds, epochs and clients."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch

from flora_hpc.data.decode import DamagedError, Loader, fetch
from flora_hpc.data.images import Images
from flora_hpc.data.store import Damage

BLOCK = 256  # images whose features are stored in one file
READERS = 8  # threads that read files for their digest; most of the time they wait for the file system


def sizes(num_images: int) -> list[int]:
    """Number of images of each block."""
    return [min(BLOCK, num_images - start) for start in range(0, num_images, BLOCK)]


def rows(number: int, num_images: int) -> range:
    """The rows of the images in block `number`."""
    return range(number * BLOCK, min((number + 1) * BLOCK, num_images))


def encode(
    images: Images,
    numbers: Iterable[int],
    tower: Callable[[torch.Tensor], torch.Tensor],
    image_size: int | tuple[int, int],
    preprocess: Callable[[Any], torch.Tensor],
    device: torch.device,
    num_threads: int,
    dtype: torch.dtype = torch.float32,
    batch: int = BLOCK,
) -> Iterator[tuple[int, torch.Tensor, Damage]]:
    """Encode the blocks `numbers`: number, features (num_images_of_it, embed_dim) and damaged images of each block.

    `tower` turns pixels (num_images, 3, height, width) float32 on `device` into features, `batch` images at a time.
    `preprocess` makes (3, height, width) from an RGB image. Features of damaged images are NaN. While the tower encodes a batch,
    `num_threads` threads read and decode the next images.
    """
    blank = torch.zeros(3, *(image_size if isinstance(image_size, tuple) else (image_size, image_size)))
    loader, blocks = Loader(images, preprocess, num_threads), [(number, rows(number, len(images))) for number in numbers]
    batches = loader.blocks(block[start : start + batch] for _, block in blocks for start in range(0, len(block), batch))
    try:
        for number, block in blocks:
            values: list[torch.Tensor] = []
            damaged: Damage = {}
            for of_batch, decoded in islice(batches, -(-len(block) // batch)):
                damage = {row: str(image) for row, image in zip(of_batch, decoded, strict=True) if isinstance(image, DamagedError)}
                pixels = torch.stack([blank if isinstance(image, DamagedError) else image for image in decoded])
                with torch.inference_mode():
                    features = tower(pixels.to(device)).float().cpu()
                    features[[row - of_batch[0] for row in damage]] = torch.nan
                values.append(features.to(dtype))
                damaged |= damage
            yield number, torch.cat(values), damaged
    finally:
        loader.close()


def find_damage(
    images: Images,
    numbers: Iterable[int],
    num_threads: int,
    preprocess: Callable[[Any], torch.Tensor] = lambda image: torch.empty(0),
) -> Damage:
    """The images of the blocks `numbers` that cannot be decoded, with the reasons."""
    loader = Loader(images, preprocess, num_threads)
    try:
        blocks = loader.blocks(rows(number, len(images)) for number in numbers)
        return {
            row: str(image)
            for block_rows, decoded in blocks
            for row, image in zip(block_rows, decoded, strict=True)
            if isinstance(image, DamagedError)
        }
    finally:
        loader.close()


def digests(images: Images, numbers: Iterable[int]) -> list[bytes]:
    """A digest (16 bytes) of the stored bytes of each of the blocks `numbers`."""
    with ThreadPoolExecutor(READERS, "digest") as readers:
        return list(readers.map(lambda number: _digest(images, rows(number, len(images))), numbers))


def _digest(images: Images, block_rows: range) -> bytes:
    result = hashlib.blake2b(digest_size=16)
    for raw in fetch(images, block_rows):
        if isinstance(raw, OSError):
            result.update(b"unreadable;")
        elif isinstance(raw, bytes):
            result.update(b"file %d;" % len(raw))
            result.update(raw)
        else:
            result.update(f"pixels {raw.shape};".encode())
            result.update(raw.tobytes())
    return result.digest()
