"""Any dataset into one HDF5 file: a single file is what shared file systems read fast, and what travels well."""

import io
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt
from PIL import Image

from flora_hpc.data.decode import DamagedError, fetch, rgb
from flora_hpc.data.images import Column, Dataset, Images, Ints, Raw
from flora_hpc.data.texts import shown
from flora_hpc.errors import UserError, reason
from flora_hpc.spill import Spill

BLOCK = 128  # images in memory at once
CHUNK_BYTES = 2**20  # of pixels compressed together: reading one image reads all of its chunk
MAX_CHUNK = 256
MAGIC = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}  # how files of one format begin
OWN = ("images", "labels", "", ".")  # names that no column can have
NAMED = 10  # damaged images that are named one by one

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Packed:
    """What was written."""

    num_train: int
    num_test: int
    encoding: str
    damaged: tuple[str, ...]  # images left out: where they lie and why
    without: tuple[str, ...]  # columns that are neither numbers nor texts, or have a name of the format's own


class _OtherShapeError(Exception):
    """Not all images are arrays of one shape."""


def pack(
    dataset: Dataset,
    path: Path,
    damaged: Literal["refuse", "skip"] = "refuse",
    progress: Progress = lambda done, total: None,
    *,
    caption: str | None = None,
    replace: bool = False,
    num_threads: int = 1,
) -> Packed:
    """Write training and test images, labels, names and columns to `path`, as docs/data-format.md describes.

    Every image is decoded once on the way; `damaged` ones are refused together, or left out. `caption` is the template to store,
    by default the one that the dataset's captions follow. `progress` is told how many images of all are done. Nothing is left at
    `path` unless all went well. Raises UserError.
    """
    if dataset.paired:
        raise UserError(f"{dataset.name}: the format has no place for a caption of each image; keep pairs as they are")
    if path.exists() and not replace:
        raise UserError(f"{path} exists already; give another name, or --replace")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no folder; create it first")
    if caption is not None and caption.count("{}") != 1:
        raise UserError(f"caption: needs {{}} once, where the name of the class goes, not {shown(caption)}")
    as_pixels = not any(isinstance(raw, bytes) for raw in dataset.images.raw(dataset.train[:1].tolist()))
    text = template(dataset) if caption is None else caption
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with ThreadPoolExecutor(num_threads, "decode") as pool:
            try:
                packed = _write(dataset, partial, as_pixels, text, damaged == "skip", pool, progress)
            except _OtherShapeError:
                packed = _write(dataset, partial, False, text, damaged == "skip", pool, progress)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # HDF5 gives RuntimeError
        raise UserError(f"{path} cannot be written ({reason(error)}); make room on its disk, or choose another place") from None
    finally:
        partial.unlink(missing_ok=True)
    return packed


def template(dataset: Dataset) -> str:
    """The caption that all classes share, with {} where their names go. Raises UserError when they share none."""
    caption, wording = dataset.captions[0], dataset.wordings[0]
    for start in range(len(caption)):
        if caption.startswith(wording, start):
            before, after = caption[:start], caption[start + len(wording) :]
            if all(f"{before}{name}{after}" == whole for name, whole in zip(dataset.wordings, dataset.captions, strict=True)):
                return f"{before}{{}}{after}"
    raise UserError(f"{dataset.name}: its captions are not made from the names of its classes; give the caption to store")


@dataclass
class _Told:
    """What is found out on the way."""

    damaged: list[str] = field(default_factory=list)
    formats: set[str] = field(default_factory=set)
    without: set[str] = field(default_factory=set)
    done: int = 0


def _write(dataset: Dataset, path: Path, as_pixels: bool, caption: str, skip: bool, pool: Executor, progress: Progress) -> Packed:
    """Write a whole file, or raise _OtherShapeError where the images are no pixels of one shape."""
    told, total = _Told(), len(dataset.train) + len(dataset.test)

    def note(done: int) -> None:
        disk.check()
        progress(done, total)

    with Spill(path) as disk:
        with h5py.File(disk, "w") as file:
            kept = [
                _part(file.create_group(name), dataset.images, rows, as_pixels, pool, told, note)
                for name, rows in (("train", dataset.train), ("test", dataset.test))
            ]
            if told.damaged and not skip:
                more = [f"and {len(told.damaged) - NAMED} more"] if len(told.damaged) > NAMED else []
                raise UserError(
                    f"{len(told.damaged)} of {total} images of {dataset.name} cannot be decoded; "
                    "mend or remove them, or set data.damaged=skip:\n  " + "\n  ".join(told.damaged[:NAMED] + more)
                )
            for name, num_images in zip(("training", "test"), kept, strict=True):
                if not num_images:
                    raise UserError(f"{dataset.name} has no {name} images that can be decoded; a file needs some of both kinds")
            encoding = "raw" if as_pixels else told.formats.pop() if len(told.formats) == 1 else "files"
            names, wordings = json.dumps(dataset.class_names), json.dumps(dataset.wordings)
            file.attrs.update(name=dataset.name, class_names=names, prompt_names=wordings, caption=caption, encoding=encoding)
        disk.sync()
    return Packed(kept[0], kept[1], encoding, tuple(told.damaged), tuple(sorted(told.without)))


def _part(
    group: h5py.Group, images: Images, rows: Ints, as_pixels: bool, pool: Executor, told: _Told, progress: Callable[[int], None]
) -> int:
    """Write the training or the test images, block by block; how many could be decoded."""
    kept: list[int] = []
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK].tolist()
        raws = fetch(images, block)
        good: list[Raw] = []
        for row, raw, damage in zip(block, raws, pool.map(_damage, raws), strict=True):
            if damage is None:
                good.append(raw)
                kept.append(row)
            else:
                told.damaged.append(f"{images.where(row)}: {damage}")
        if good:
            told.formats |= _append_pixels(group, good) if as_pixels else _append_files(group, good)
        told.done += len(block)
        progress(told.done)
    order = np.array(kept, np.int64)
    group["labels"] = images.labels[order]
    for name, read in images.columns.items():
        values = None if name in OWN or "/" in name else _storable(read()[order])
        if values is None:
            told.without.add(name)
        else:
            group.create_dataset(name, data=values, dtype=h5py.string_dtype() if values.dtype == object else values.dtype)
    return len(kept)


def _damage(raw: Raw) -> str | None:
    """Why an image cannot be decoded."""
    try:
        rgb(raw)
    except DamagedError as damage:
        return str(damage)
    return None


def _append_pixels(group: h5py.Group, raws: list[Raw]) -> set[str]:
    shapes = {raw.shape if isinstance(raw, np.ndarray) else () for raw in raws}
    shape = shapes.pop()
    if shapes or len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)):
        raise _OtherShapeError
    if "images" not in group:
        chunk = (min(MAX_CHUNK, max(1, CHUNK_BYTES // math.prod(shape))), *shape)
        group.create_dataset("images", (0, *shape), np.uint8, maxshape=(None, *shape), chunks=chunk, compression="gzip")
    if group["images"].shape[1:] != shape:
        raise _OtherShapeError
    _append(group["images"], np.stack(raws))  # type: ignore[arg-type]
    return set()


def _append_files(group: h5py.Group, raws: list[Raw]) -> set[str]:
    """Add the bytes of image files as they are, and pixels as PNG; the formats of all of them."""
    files = [raw if isinstance(raw, bytes) else _png(raw) for raw in raws]
    if "images" not in group:
        group.create_dataset("images", (0,), h5py.vlen_dtype(np.uint8), maxshape=(None,), chunks=(BLOCK,))
    for file in files:  # one by one, since h5py takes files of one length for a table of numbers
        _append(group["images"], [np.frombuffer(file, np.uint8)])
    return {next((name for name, start in MAGIC.items() if file.startswith(start)), "files") for file in files}


def _append(table: h5py.Dataset, new: npt.NDArray[np.uint8] | list[npt.NDArray[np.uint8]]) -> None:
    table.resize(len(table) + len(new), 0)
    table[-len(new) :] = new


def _png(raw: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(raw.squeeze(2) if raw.ndim == 3 and raw.shape[2] == 1 else raw).save(file, "PNG")
    return file.getvalue()


def _storable(values: Column) -> Column | None:
    """Numbers as they are, texts as objects, and None for anything else."""
    if values.dtype.kind in "biuf":
        return values
    texts = values.tolist()
    if not all(isinstance(text, str) for text in texts):
        return None
    joined = "".join(texts)
    fits = "\0" not in joined and not any("\ud800" <= sign <= "\udfff" for sign in joined)  # what HDF5's texts cannot hold
    return np.array(texts, object) if fits else None
