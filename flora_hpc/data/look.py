"""Inspect decoded images: damaged ones, faint ones, and ones with several frames, of which only the first is used."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from flora_hpc.data.decode import STRETCH, DamagedError, fetch, one_core, rgb
from flora_hpc.data.images import Images, Ints, Raw
from flora_hpc.data.store import Damage

SAMPLE = 32  # images that a run inspects before it starts; takes a fraction of a second for usual photos
LEVELS = 16  # of 255: people see nothing in an image whose pixels differ by no more
NAMED = 3  # most images that a sentence names
ANIMATED = {"GIF", "PNG", "WEBP", "TIFF", "AVIF"}  # in other formats further frames are previews, layers or other sizes


@dataclass(frozen=True)
class Inspection:
    """The results for some images, by row."""

    num_images: int = 0
    damaged: Damage = field(default_factory=dict)
    faint: tuple[int, ...] = ()  # images whose pixels differ by at most `LEVELS` in every channel
    animated: tuple[int, ...] = ()  # images of several frames or pages

    def __add__(self, other: "Inspection") -> "Inspection":
        return Inspection(
            self.num_images + other.num_images,
            self.damaged | other.damaged,
            self.faint + other.faint,
            self.animated + other.animated,
        )

    def warnings(self, images: Images, least: float = 0) -> tuple[str, ...]:
        """Warnings about faint or animated images, if they are more than the share `least` of the inspected images."""
        faint = f"show hardly anything, for their pixels differ by {LEVELS} of 255 levels at most"
        sentences = [
            (self.faint, faint, "were they scaled to 0..1 before they were stored, or do they use few of their bits?"),
            (self.animated, "have several frames or pages", "only the first is used"),
        ]
        result = []
        for rows, what, advice in sentences:
            if len(rows) > least * self.num_images:
                named = ", ".join(map(images.where, rows[:NAMED]))
                result.append(f"{len(rows):,} of {self.num_images:,} images looked at {what}, such as {named}; {advice}")
        return tuple(result)


def inspect(images: Images, rows: Sequence[int], num_threads: int) -> Inspection:
    """Decode and inspect these images in `num_threads` threads. Raises UserError for an image that cannot be read now."""
    stretches = [rows[start : start + STRETCH] for start in range(0, len(rows), STRETCH)]
    with ThreadPoolExecutor(max(1, num_threads), "inspect", one_core) as pool:
        return sum(pool.map(lambda stretch: _inspect(images, stretch), stretches), Inspection())


def sample(rows: Ints) -> list[int]:
    """At most `SAMPLE` of `rows`, evenly spaced."""
    chosen: list[int] = rows[np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(np.int64))].tolist()
    return chosen


def _inspect(images: Images, rows: Sequence[int]) -> Inspection:
    damaged: Damage = {}
    faint, animated = [], []
    for row, raw in zip(rows, fetch(images, rows), strict=True):
        try:
            picture = rgb(raw)
        except DamagedError as damage:
            damaged[row] = str(damage)
            continue
        if all(_range(band) <= LEVELS for band in picture.split()):
            faint.append(row)
        if _has_frames(raw):
            animated.append(row)
    return Inspection(len(rows), damaged, tuple(faint), tuple(animated))


def _range(band: Image.Image) -> float:
    """Difference between the largest and the smallest value of a channel."""
    low, high = band.getextrema()
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    return high - low


def _has_frames(raw: Raw) -> bool:
    """Whether an image file has several frames or pages that people would see."""
    if not isinstance(raw, bytes):
        return False
    try:
        image = Image.open(io.BytesIO(raw))
        return image.format in ANIMATED and bool(getattr(image, "is_animated", False))
    except Exception:  # Pillow raises anything (IndexError, struct.error) where a later frame is cut off
        return False
