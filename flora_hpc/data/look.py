"""A look at the pictures themselves: which are damaged, show hardly anything, or have more frames than the one that is used."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from flora_hpc.data.decode import STRETCH, DamagedError, fetch, one_core, rgb
from flora_hpc.data.images import Images, Ints, Raw
from flora_hpc.data.store import Damage

SAMPLE = 32  # images that a run looks at before it starts: a fraction of a second for photos of usual size
LEVELS = 16  # of 255: nobody sees a picture whose pixels differ by no more
NAMED = 3  # images named in a sentence
ANIMATED = {"GIF", "PNG", "WEBP", "TIFF", "AVIF"}  # further pictures of other formats are previews, layers or other sizes


@dataclass(frozen=True)
class Look:
    """What was seen of some images, by their rows."""

    num_images: int = 0
    damaged: Damage = field(default_factory=dict)
    faint: tuple[int, ...] = ()  # their pixels lie within `LEVELS` in every channel
    animated: tuple[int, ...] = ()  # of several frames or pages

    def __add__(self, other: "Look") -> "Look":
        return Look(
            self.num_images + other.num_images,
            self.damaged | other.damaged,
            self.faint + other.faint,
            self.animated + other.animated,
        )

    def warnings(self, images: Images, least: float = 0) -> tuple[str, ...]:
        """Sentences for people about pictures that may not mean what their owner saw, if more than a share `least` are such."""
        faint = f"show hardly anything, for their pixels differ by {LEVELS} of 255 levels at most"
        sentences = [
            (self.faint, faint, "were they scaled to 0..1 before they were stored, or do they use few of their bits?"),
            (self.animated, "have several frames or pages", "only the first is used"),
        ]
        result = []
        for rows, what, then in sentences:
            if len(rows) > least * self.num_images:
                named = ", ".join(map(images.where, rows[:NAMED]))
                result.append(f"{len(rows):,} of {self.num_images:,} images looked at {what}, such as {named}; {then}")
        return tuple(result)


def look(images: Images, rows: Sequence[int], num_threads: int) -> Look:
    """Decode these images in `num_threads` threads and look at them. Raises UserError for one that cannot be read now."""
    stretches = [rows[start : start + STRETCH] for start in range(0, len(rows), STRETCH)]
    with ThreadPoolExecutor(max(1, num_threads), "look", one_core) as pool:
        return sum(pool.map(lambda stretch: _look(images, stretch), stretches), Look())


def sample(rows: Ints) -> list[int]:
    """At most `SAMPLE` of some rows, spread evenly over them."""
    chosen: list[int] = rows[np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(np.int64))].tolist()
    return chosen


def _look(images: Images, rows: Sequence[int]) -> Look:
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
    return Look(len(rows), damaged, tuple(faint), tuple(animated))


def _range(band: Image.Image) -> float:
    low, high = band.getextrema()
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    return high - low


def _has_frames(raw: Raw) -> bool:
    if not isinstance(raw, bytes):
        return False
    try:
        image = Image.open(io.BytesIO(raw))
        return image.format in ANIMATED and bool(getattr(image, "is_animated", False))
    except (
        Exception
    ):  # the first frame is whole, but Pillow raises anything (IndexError, struct.error) where a later one is cut off
        return False
