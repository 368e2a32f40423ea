"""Decode stored images to RGB, in several threads. A damaged image gives a DamagedError with the reason, never silence."""

import errno
import io
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError
from threadpoolctl import threadpool_limits

from flora_hpc.data import kinds
from flora_hpc.data.images import Images, Raw
from flora_hpc.errors import UserError, reason

# PIL warns of large images and odd metadata. Warnings are switched off here, once: filters belong to the process, and threads
# that switch them off and on again disturb each other.
warnings.filterwarnings("ignore", module=r"PIL\.")

LASTING = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}  # errors that last: the stamp of the files changes when one of them is mended
MOST_STRETCHED = 1000  # longest side of an image / shortest: preprocessing scales the shorter one to the model's size
TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what makes the image upright; 1 is upright
ORIENTATION_KEYS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where PIL finds an orientation
GRAY_STEPS = {"L;2": 85, "L;4": 17}  # PNG of 2 and 4 bits: step between two levels in 8 bits
STRETCH = 8  # neighbouring images that one thread reads at once
AHEAD = 2  # stretches a thread that are read and decoded ahead, while the caller computes on a block


class DamagedError(Exception):
    """Why an image cannot be decoded."""


Decoded = list[torch.Tensor | DamagedError]


def rgb(raw: Raw) -> Image.Image:
    """Decode an image file's bytes, or uint8 pixels (height, width[, 1 or 3]), to an upright 8-bit RGB image.

    EXIF orientation is applied. Transparent pixels become white. PIL converts gray, palette and CMYK images to RGB. 16-bit images
    keep their upper 8 bits (PIL would clip them to white). Images of several frames give their first frame. Raises DamagedError for
    bytes that are no image or are truncated, and for pixels without a known range.
    """
    try:
        image = _convert(raw)
    except UnidentifiedImageError:
        raise DamagedError(kinds.unknown(raw) if isinstance(raw, bytes) else "it is no image that can be decoded") from None
    except Exception as error:  # PIL raises anything on broken files: SyntaxError, struct.error, EOFError, IndexError, ...
        raise DamagedError(" ".join(str(error).split()) or type(error).__name__) from None
    if min(image.size) == 0 or max(image.size) > MOST_STRETCHED * min(image.size):
        raise DamagedError(f"it is {image.width} x {image.height} pixels, which no preprocessing can make a square of")
    return image


def _convert(raw: Raw) -> Image.Image:
    """Decode to RGB; raises whatever PIL raises."""
    if isinstance(raw, OSError):
        raise raw
    if isinstance(raw, np.ndarray):
        return Image.fromarray(raw.squeeze(2) if raw.ndim == 3 and raw.shape[2] == 1 else raw).convert("RGB")
    image: Image.Image = Image.open(io.BytesIO(raw))
    key = _transparent_colour(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # these two have 16 bits at most
        levels = np.asarray(image, np.uint32)
        shades = np.where(levels == key, 255, levels >> 8) if isinstance(key, int) else levels >> 8
        colours = Image.fromarray(shades.astype(np.uint8)).convert("RGB")
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}) of unknown range")
    elif image.has_transparency_data:
        if key is not None:
            image.info["transparency"] = key
        pixels = image.convert("RGBA")
        colours = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    else:
        colours = image.convert("RGB")
    turn = _turn(image)
    return colours if turn is None else colours.transpose(turn)


def _transparent_colour(image: Image.Image) -> Any:
    """The colour that means transparent, in decoded levels. PNG and PIL state it in the levels of the file."""
    key = image.info.get("transparency")
    stored = image.tile[0][3] if isinstance(image, PngImagePlugin.PngImageFile) and image.tile else None
    if stored == "RGB;16B" and isinstance(key, tuple):
        return tuple(level >> 8 for level in key)
    return key * GRAY_STEPS[stored] if stored in GRAY_STEPS and isinstance(key, int) else key


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The transposition that makes a decoded image upright. PIL has turned a TIFF already. Broken EXIF is ignored."""
    if not ORIENTATION_KEYS & image.info.keys():
        return None
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # PIL raises anything here, too
        return None


def fetch(images: Images, rows: Sequence[int]) -> list[Raw]:
    """Read these images as they are stored. Raises UserError for an image that may be readable later: that is no damage."""
    raws = images.raw(rows)
    for row, raw in zip(rows, raws, strict=True):
        if isinstance(raw, OSError) and raw.errno is not None and raw.errno not in LASTING:
            raise UserError(f"{images.where(row)} cannot be read now ({reason(raw)}); look after the file system, try again")
    return raws


def decode(images: Images, rows: Sequence[int]) -> list[Image.Image | DamagedError]:
    """Read and decode these images; a DamagedError stands for a damaged image. Raises UserError like `fetch`."""
    result: list[Image.Image | DamagedError] = []
    for raw in fetch(images, rows):
        try:
            result.append(rgb(raw))
        except DamagedError as damage:
            result.append(damage)
    return result


class Loader:
    """Reads, decodes and preprocesses images in `num_threads` threads; files, PIL and torchvision release Python's lock.

    `preprocess` makes (3, height, width) float32 from an RGB image.
    """

    def __init__(self, images: Images, preprocess: Callable[[Any], torch.Tensor], num_threads: int) -> None:
        self._images, self._preprocess = images, preprocess
        self._pool = ThreadPoolExecutor(max(1, num_threads), "decode", one_core)
        self._ahead = AHEAD * max(1, num_threads)

    def blocks(self, blocks: Iterable[Sequence[int]]) -> Iterator[tuple[Sequence[int], Decoded]]:
        """Each block of rows with its preprocessed images or DamagedErrors, while the threads work on the next blocks."""
        pending: deque[tuple[Sequence[int], list[Future[Decoded]]]] = deque()
        for block in blocks:
            stretches = [block[start : start + STRETCH] for start in range(0, len(block), STRETCH)]
            pending.append((block, [self._pool.submit(self._load, stretch) for stretch in stretches]))
            while sum(len(stretches) for _, stretches in pending) - len(pending[0][1]) >= self._ahead:
                yield _wait(*pending.popleft())
        while pending:
            yield _wait(*pending.popleft())

    def _load(self, rows: Sequence[int]) -> Decoded:
        result: Decoded = []
        for image in decode(self._images, rows):
            result.append(image if isinstance(image, DamagedError) else self._preprocess(image))
        return result

    def close(self) -> None:
        """End the threads; pending images are cancelled."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def one_core() -> None:
    """Make PyTorch's operators use one core in this thread: each thread would start an OpenMP team of its own."""
    torch.get_num_threads()  # after this call PyTorch no longer sets the team size of this thread
    threadpool_limits(1, "openmp")


def _wait(rows: Sequence[int], stretches: list[Future[Decoded]]) -> tuple[Sequence[int], Decoded]:
    return rows, [image for stretch in stretches for image in stretch.result()]
