"""Write any dataset into one HDF5 file: shared file systems read one file fast, and it is easy to copy."""

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
CHUNK_BYTES = 2**20  # of pixels in a compressed chunk; reading one image reads its whole chunk
MAX_CHUNK = 256
MAGIC = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}  # first bytes of files of a format
RESERVED = ("images", "labels", "", ".")  # names that no column can have
NAMED = 10  # most damaged images that a message names

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Packed:
    """The content of the written file."""

    num_train: int
    num_test: int
    encoding: str
    damaged: tuple[str, ...]  # images that were dropped: place and reason
    dropped_columns: tuple[str, ...]  # neither numbers nor texts, or with a reserved name


class _OtherShapeError(Exception):
    """The images are not arrays of one shape."""


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

    Every image is decoded once. Damaged images are refused in one message, or dropped (`damaged`). `caption` is the template to
    store; by default it is found from the dataset's captions. `progress` gets (images done, images in all). The file appears at
    `path` only when it is complete. Raises UserError.
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
    """The template of all captions, with {} in place of the name. Raises UserError when the captions have no common one."""
    caption, wording = dataset.captions[0], dataset.wordings[0]
    for start in range(len(caption)):
        if caption.startswith(wording, start):
            before, after = caption[:start], caption[start + len(wording) :]
            if all(f"{before}{name}{after}" == whole for name, whole in zip(dataset.wordings, dataset.captions, strict=True)):
                return f"{before}{{}}{after}"
    raise UserError(f"{dataset.name}: its captions are not made from the names of its classes; give the caption to store")


@dataclass
class _Log:
    """Damaged images, formats and dropped columns met while writing, and images done."""

    damaged: list[str] = field(default_factory=list)
    formats: set[str] = field(default_factory=set)
    dropped_columns: set[str] = field(default_factory=set)
    done: int = 0


def _write(dataset: Dataset, path: Path, as_pixels: bool, caption: str, skip: bool, pool: Executor, progress: Progress) -> Packed:
    """Write a whole file. Raises _OtherShapeError if `as_pixels` and the images are not pixels of one shape."""
    log, total = _Log(), len(dataset.train) + len(dataset.test)

    def advance(done: int) -> None:
        disk.check()
        progress(done, total)

    with Spill(path) as disk:
        with h5py.File(disk, "w") as file:
            counts = [
                _write_part(file.create_group(name), dataset.images, rows, as_pixels, pool, log, advance)
                for name, rows in (("train", dataset.train), ("test", dataset.test))
            ]
            if log.damaged and not skip:
                more = [f"and {len(log.damaged) - NAMED} more"] if len(log.damaged) > NAMED else []
                raise UserError(
                    f"{len(log.damaged)} of {total} images of {dataset.name} cannot be decoded; "
                    "mend or remove them, or set data.damaged=skip:\n  " + "\n  ".join(log.damaged[:NAMED] + more)
                )
            for name, num_images in zip(("training", "test"), counts, strict=True):
                if not num_images:
                    raise UserError(f"{dataset.name} has no {name} images that can be decoded; a file needs some of both kinds")
            encoding = "raw" if as_pixels else log.formats.pop() if len(log.formats) == 1 else "files"
            names, wordings = json.dumps(dataset.class_names), json.dumps(dataset.wordings)
            file.attrs.update(name=dataset.name, class_names=names, prompt_names=wordings, caption=caption, encoding=encoding)
        disk.sync()
    return Packed(counts[0], counts[1], encoding, tuple(log.damaged), tuple(sorted(log.dropped_columns)))


def _write_part(
    group: h5py.Group, images: Images, rows: Ints, as_pixels: bool, pool: Executor, log: _Log, progress: Callable[[int], None]
) -> int:
    """Write the training or the test images, block by block; returns how many could be decoded."""
    written: list[int] = []
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK].tolist()
        raws = fetch(images, block)
        sound: list[Raw] = []
        for row, raw, damage in zip(block, raws, pool.map(_damage, raws), strict=True):
            if damage is None:
                sound.append(raw)
                written.append(row)
            else:
                log.damaged.append(f"{images.where(row)}: {damage}")
        if sound:
            log.formats |= _append_pixels(group, sound) if as_pixels else _append_files(group, sound)
        log.done += len(block)
        progress(log.done)
    order = np.array(written, np.int64)
    group["labels"] = images.labels[order]
    for name, read in images.columns.items():
        values = None if name in RESERVED or "/" in name else _storable(read()[order])
        if values is None:
            log.dropped_columns.add(name)
        else:
            group.create_dataset(name, data=values, dtype=h5py.string_dtype() if values.dtype == object else values.dtype)
    return len(written)


def _damage(raw: Raw) -> str | None:
    """Why an image cannot be decoded; None if it can."""
    try:
        rgb(raw)
    except DamagedError as damage:
        return str(damage)
    return None


def _append_pixels(group: h5py.Group, raws: list[Raw]) -> set[str]:
    """Append pixels; no format. Raises _OtherShapeError unless all are arrays of the shape of the table."""
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
    """Append the bytes of image files as they are, and pixels as PNG; returns their formats."""
    files = [raw if isinstance(raw, bytes) else _png(raw) for raw in raws]
    if "images" not in group:
        group.create_dataset("images", (0,), h5py.vlen_dtype(np.uint8), maxshape=(None,), chunks=(BLOCK,))
    for file in files:  # one at a time, since h5py takes several files of one length for a table of numbers
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
    """The values to store: numbers as they are, texts as objects, None for anything else."""
    if values.dtype.kind in "biuf":
        return values
    texts = values.tolist()
    if not all(isinstance(text, str) for text in texts):
        return None
    joined = "".join(texts)
    fits = "\0" not in joined and not any("\ud800" <= sign <= "\udfff" for sign in joined)  # texts that HDF5 cannot hold
    return np.array(texts, object) if fits else None
