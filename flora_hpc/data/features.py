"""The features of images, block by block: what a frozen image tower makes of each, once for all rounds, epochs and clients."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch

from flora_hpc.data.decode import DamagedError, Loader, fetch
from flora_hpc.data.images import Images
from flora_hpc.data.store import Damage

BLOCK = 256  # images whose features are kept together
READERS = 8  # threads that read files to digest them: most of the time goes into waiting for the file system


def sizes(num_images: int) -> list[int]:
    """Number of images of each block."""
    return [min(BLOCK, num_images - start) for start in range(0, num_images, BLOCK)]


def rows(number: int, num_images: int) -> range:
    """The images of a block."""
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
    at_once: int = BLOCK,
) -> Iterator[tuple[int, torch.Tensor, Damage]]:
    """Each of these blocks: its features as the tower gives them (num_images_of_it, embed_dim), and its damaged images.

    `tower` turns pixels (num_images, 3, height, width) float32 on `device` into features, `at_once` images of a block at a time.
    `preprocess` makes (3, height, width) from an RGB image. Damaged images have features NaN. The next images are read and decoded
    by `num_threads` threads while some are encoded.
    """
    blank = torch.zeros(3, *(image_size if isinstance(image_size, tuple) else (image_size, image_size)))
    loader, blocks = Loader(images, preprocess, num_threads), [(number, rows(number, len(images))) for number in numbers]
    parts = loader.blocks(block[start : start + at_once] for _, block in blocks for start in range(0, len(block), at_once))
    try:
        for number, block in blocks:
            values: list[torch.Tensor] = []
            damaged: Damage = {}
            for of_part, read in islice(parts, -(-len(block) // at_once)):
                harmed = {row: str(image) for row, image in zip(of_part, read, strict=True) if isinstance(image, DamagedError)}
                pixels = torch.stack([blank if isinstance(image, DamagedError) else image for image in read])
                with torch.inference_mode():
                    found = tower(pixels.to(device)).float().cpu()
                    found[[row - of_part[0] for row in harmed]] = torch.nan
                values.append(found.to(dtype))
                damaged |= harmed
            yield number, torch.cat(values), damaged
    finally:
        loader.close()


def find_damage(
    images: Images,
    numbers: Iterable[int],
    num_threads: int,
    preprocess: Callable[[Any], torch.Tensor] = lambda image: torch.empty(0),
) -> Damage:
    """Which images of these blocks cannot be decoded."""
    loader = Loader(images, preprocess, num_threads)
    try:
        blocks = loader.blocks(rows(number, len(images)) for number in numbers)
        return {
            row: str(image)
            for of_block, read in blocks
            for row, image in zip(of_block, read, strict=True)
            if isinstance(image, DamagedError)
        }
    finally:
        loader.close()


def digests(images: Images, numbers: Iterable[int]) -> list[bytes]:
    """A digest of the stored bytes of each of these blocks."""
    with ThreadPoolExecutor(READERS, "digest") as readers:
        return list(readers.map(lambda number: _digest(images, rows(number, len(images))), numbers))


def _digest(images: Images, wanted: range) -> bytes:
    result = hashlib.blake2b(digest_size=16)
    for raw in fetch(images, wanted):
        if isinstance(raw, OSError):
            result.update(b"unreadable;")
        elif isinstance(raw, bytes):
            result.update(b"file %d;" % len(raw))
            result.update(raw)
        else:
            result.update(f"pixels {raw.shape};".encode())
            result.update(raw.tobytes())
    return result.digest()
