"""Images per second on the way into the feature store: decoding, image tower, writing."""

import io
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flora_hpc import embed, seeds
from flora_hpc.bench.methods import model_config, processor
from flora_hpc.clip import precision
from flora_hpc.clip.load import Clip, load
from flora_hpc.clip.towers import image_features, images_at_once
from flora_hpc.comm import devices, launch
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.config import CommConfig, FeaturesConfig
from flora_hpc.data import features, store
from flora_hpc.data.decode import Loader
from flora_hpc.data.images import Images, Raw
from flora_hpc.errors import UserError
from flora_hpc.versions import versions

DISTINCT = 64  # pictures; images are copies of them, because drawing a picture takes longer than decoding it


@dataclass(frozen=True)
class Task:
    """The settings of the measurement."""

    model: str
    num_images: int
    side: int  # pixels
    encoding: str  # jpeg or png
    repeats: int
    device: str  # auto, cpu or cuda


@dataclass(frozen=True)
class Parts:
    """Seconds for all images."""

    whole: float  # all of the following; the next images are decoded while the tower works
    decode: float  # alone, by all threads: decoded and preprocessed
    tower: float  # alone
    store: float  # alone: the digest of the images, and writing features
    again: float  # a later run, instead of the whole: the digest of the images, and features read back
    read: float  # features read back, a part of `again`


def measure(task: Task, progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Embed random images repeatedly, as a whole and part by part in turn. Raises UserError for a missing model or device."""
    me, comm = launch.detect(), Serial()
    device, num_threads = devices.pick(me, CommConfig(device=task.device)), devices.share_cores(comm, me)
    clip = load(model_config(task.model), 0, device)
    pictures = make_pictures(task)
    images = as_dataset(pictures, task.num_images)
    work = embed.Work(clip, FeaturesConfig(), comm, device, num_threads)
    time_tower(clip, images, work, min(task.num_images, features.BLOCK))  # warms up
    parts_of_repeats, bf16_seconds = [], []
    for repeat in range(task.repeats):
        progress(f"{task.num_images:,} images ({repeat + 1} of {task.repeats})")
        with tempfile.TemporaryDirectory(prefix="flora-hpc-bench-") as folder:
            parts, sizes = once(images, work, Path(folder))
            parts_of_repeats.append(parts)
        if has_bf16(device):
            with precision.lowered("bf16", clip.model.visual):
                bf16_seconds.append(time_tower(clip, images, work, len(images)))
    return {
        **asdict(task),
        "embed_dim": int(clip.model.visual.output_dim),
        "encoded_bytes": statistics.mean(map(len, pictures)),  # of an image
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "num_threads": num_threads,
        "processor": processor(),
        "versions": versions(),
        **summary(parts_of_repeats, task.num_images),
        "bf16": compare(parts_of_repeats, bf16_seconds, error_in_bf16(clip, images, work)) if bf16_seconds else None,
        "store_bytes": sizes,
    }


def summary(repeats: Sequence[Parts], num_images: int) -> dict[str, Any]:
    """Medians of the repeats: seconds, images per second, and the shares of the parts in all the work, which add up to 1."""
    seconds = {name: statistics.median(getattr(parts, name) for parts in repeats) for name in Parts.__dataclass_fields__}
    work = sum(seconds[name] for name in ("decode", "tower", "store"))
    return {
        "seconds": seconds,
        "images_per_second": {name: num_images / value for name, value in seconds.items()},
        "shares": {name: seconds[name] / work for name in ("decode", "tower", "store")},
        "repeat_seconds": [parts.whole for parts in repeats],
    }


def has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies in bfloat16."""
    try:
        precision.prepare_device("bf16", device)
    except UserError:
        return False
    return True


def compare(repeats: Sequence[Parts], bf16_seconds: Sequence[float], error: float) -> dict[str, float]:
    """The image tower with features.compute: bf16, against fp32: seconds, how many times as fast, and the error of features."""
    median = statistics.median(bf16_seconds)
    return {"seconds": median, "speedup": statistics.median(parts.tower for parts in repeats) / median, "error": error}


def error_in_bf16(clip: Clip, images: Images, work: embed.Work) -> float:
    """The norm of the difference from features in fp32, over their norm, for one block of images."""
    rows = range(min(len(images), features.BLOCK))
    pixels = torch.stack([clip.preprocess(Image.open(io.BytesIO(data))) for data in images.raw(rows) if isinstance(data, bytes)])
    values = {}
    for name in ("fp32", "bf16"):
        with precision.lowered(name, clip.model.visual):
            values[name] = torch.cat(
                [image_features(clip.model, part.to(work.device)) for part in pixels.tensor_split(max(1, len(pixels) // 16))]
            )
    return float((values["bf16"] - values["fp32"]).norm() / values["fp32"].norm())


def once(images: Images, work: embed.Work, folder: Path) -> tuple[Parts, dict[str, int]]:
    """One repeat, and the bytes of the store's file in each precision."""
    storing = embed.Work(work.clip, FeaturesConfig(store=str(folder / "store")), work.comm, work.device, work.num_threads)
    embedded, whole_seconds = timed(lambda: embed.embed(images, "random images", storing))
    values = embedded.values.float()
    _, write_seconds = timed(lambda: keep(images, values, storing, folder / "again"))
    _, again_seconds = timed(lambda: embed.embed(images, "random images", storing).values.float().sum())
    _, read_seconds = timed(lambda: read_back(Path(embedded.place)))
    sizes = {}
    for name, dtype in store.DTYPES.items():
        store.join(folder / name, [values.to(dtype)], embedded.facts)
        sizes[name] = (folder / name).stat().st_size
    decode, tower = time_decoding(images, work), time_tower(work.clip, images, work, len(images))
    return Parts(whole_seconds, decode, tower, write_seconds, again_seconds, read_seconds), sizes


def keep(images: Images, values: torch.Tensor, work: embed.Work, folder: Path) -> None:
    """The work of embedding beside the features: digest the images, write block by block, join the blocks."""
    place, sizes = store.Store(folder), features.sizes(len(images))
    key = embed.key_of(embed.digest_of(images, place, work), work)
    for number in range(len(sizes)):
        rows = features.rows(number, len(images))
        place.add_block(key, number, values[rows.start : rows.stop], {})
    place.complete(key, sizes, {})
    place.wait(key, len(images))


def read_back(path: Path) -> float:
    """Map a file of features, and read all of them."""
    content = store.read(path)
    assert content is not None
    return float(content[0].float().sum())


def time_decoding(images: Images, work: embed.Work) -> float:
    """Seconds to decode and preprocess all images."""
    blocks = (features.rows(number, len(images)) for number in range(len(features.sizes(len(images)))))
    start, loader = time.perf_counter(), Loader(images, work.clip.preprocess, work.num_threads)
    try:
        for _ in loader.blocks(blocks):
            pass
        return time.perf_counter() - start
    finally:
        loader.close()


def time_tower(clip: Clip, images: Images, work: embed.Work, num_images: int) -> float:
    """Seconds for features of `num_images` images whose pixels are ready."""
    loader, at_once = Loader(images, clip.preprocess, work.num_threads), images_at_once(clip.model, work.device)
    try:
        ((_, images_read),) = loader.blocks([range(min(len(images), at_once))])
    finally:
        loader.close()
    pixels = torch.stack([image for image in images_read if isinstance(image, torch.Tensor)])
    start = time.perf_counter()
    for done in range(0, num_images, at_once):
        image_features(clip.model, pixels[: num_images - done].to(work.device)).cpu()
    return time.perf_counter() - start


def make_pictures(task: Task) -> list[bytes]:
    """Different pictures, at most DISTINCT."""
    return [encoded(number, task.side, task.encoding) for number in range(min(DISTINCT, task.num_images))]


def as_dataset(pictures: Sequence[bytes], num_images: int) -> Images:
    """A dataset of `num_images` images, as a dataset of files gives them."""

    def raw(rows: Sequence[int]) -> list[Raw]:
        return [pictures[row % len(pictures)] for row in rows]

    return Images(np.zeros(num_images, np.int64), raw, lambda row: f"random image {row}")


def encoded(number: int, side: int, encoding: str) -> bytes:
    """One picture as the bytes of a file: smooth shapes with some noise, so that it is as large as a photograph."""
    rng = seeds.generator(0, "bench picture", number)
    coarse = rng.integers(0, 256, (max(1, math.ceil(side / 32)),) * 2 + (3,), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), np.int16)
    pixels = np.clip(smooth + rng.integers(-12, 13, smooth.shape, np.int16), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, encoding, **({"quality": 90} if encoding == "jpeg" else {}))
    return file.getvalue()


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of `work`, and its seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start
