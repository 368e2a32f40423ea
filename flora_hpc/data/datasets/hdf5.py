"""One HDF5 file: {train,test}/{images,labels}, raw uint8 NHWC or encoded JPEG/PNG rows; docs/data-format.md describes it."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from flora_hpc.data.images import Dataset, DatasetOptions, Images
from flora_hpc.errors import UserError, did_you_mean


class Options(DatasetOptions):
    """Which file."""

    path: Path = Field(description="the HDF5 file")


def build(options: Options) -> Dataset:
    """Open the file and check its layout; images are decoded when they are read. Raises UserError for a wrong file."""
    path = options.path.expanduser()
    if not path.is_file():
        nearby = [p.name for p in path.parent.glob("*.h5")] if path.parent.is_dir() else []
        raise UserError(f"data.path: there is no file {path}{did_you_mean(path.name, nearby)}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(
            f"data.path: {path} is not an HDF5 file that can be read ({error}); docs/data-format.md says what is needed"
        ) from None
    missing = [name for name in ("train/images", "train/labels", "test/images", "test/labels") if name not in file]
    missing += [f"attribute {name}" for name in ("class_names", "encoding") if name not in file.attrs]
    if missing:
        raise UserError(f"data.path: {path} lacks {', '.join(missing)}; docs/data-format.md says what is needed")
    class_names = _names(path, file, "class_names")
    wordings = _names(path, file, "prompt_names") if "prompt_names" in file.attrs else class_names
    if len(wordings) != len(class_names):
        raise UserError(f"data.path: {path} has {len(class_names)} class_names but {len(wordings)} prompt_names; make them as many")
    encoding = _text(file.attrs["encoding"])
    if encoding not in ("raw", "jpeg", "png"):
        raise UserError(f"data.path: {path}: encoding is '{encoding}'; it must be raw, jpeg or png")
    captions = tuple(options.caption.format(name) for name in wordings)
    train, test = (_images(path, file, part, len(class_names), encoding) for part in ("train", "test"))
    return Dataset(_text(file.attrs.get("name", path.stem)), class_names, wordings, captions, train, test)


def _text(value: Any) -> str:
    """An attribute as text; a fixed-length one arrives as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _names(path: Path, file: h5py.File, attribute: str) -> tuple[str, ...]:
    try:
        names = json.loads(_text(file.attrs[attribute]))
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"data.path: {path}: attribute {attribute} must be a JSON list of texts, not {file.attrs[attribute]!r}")
    return tuple(names)


def _images(path: Path, file: h5py.File, part: str, num_classes: int, encoding: str) -> Images:
    rows, labels = file[f"{part}/images"], np.asarray(file[f"{part}/labels"], np.int64)
    if len(rows) != len(labels) or len(labels) == 0:
        raise UserError(f"data.path: {path}: {part} has {len(rows)} images and {len(labels)} labels; it needs as many, and some")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"data.path: {path}: {part}/labels go from {labels.min()} to {labels.max()}, but there are {num_classes} classes"
        )
    if encoding == "raw" and rows.dtype != np.uint8:
        raise UserError(f"data.path: {path}: {part}/images are {rows.dtype}; raw images must be uint8, 0 to 255")

    def read(wanted: Sequence[int]) -> list[Image.Image]:
        if not wanted:
            return []
        first, last = wanted[0], wanted[-1]
        try:
            in_a_row = list(wanted) == list(range(first, last + 1))
            block = rows[first : last + 1] if in_a_row else [rows[row] for row in wanted]
        except OSError as error:
            raise UserError(
                f"data.path: {path}: {part}/images[{first}:{last + 1}] cannot be read ({error}); fetch the file anew"
            ) from None
        return [_decode(row, encoding, f"{path}: {part}/images[{i}]") for i, row in zip(wanted, block, strict=True)]

    return Images(labels, read)


def _decode(row: Any, encoding: str, where: str) -> Image.Image:
    try:
        image = Image.fromarray(row.squeeze()) if encoding == "raw" else Image.open(io.BytesIO(row.tobytes()))
        return image.convert("RGB")
    except UnidentifiedImageError:
        raise UserError(f"data.path: {where} is not an image that can be decoded; mend or remove it") from None
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"data.path: {where} is not an image that can be decoded ({error}); mend or remove it") from None
