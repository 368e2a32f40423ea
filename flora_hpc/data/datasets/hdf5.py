"""One HDF5 file: {train,test}/{images,labels}, raw uint8 NHWC or the bytes of image files; docs/data-format.md describes it."""

import json
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from pydantic import Field

from flora_hpc.data.images import CAPTION, Column, Dataset, DatasetOptions, Images, Raw, assemble, stamp
from flora_hpc.errors import UserError, did_you_mean, lock_cure


class Options(DatasetOptions):
    """Which file."""

    path: Path = Field(description="the HDF5 file")


def build(options: Options) -> Dataset:
    """Open the file and check its layout; images are read when they are needed. Raises UserError for a wrong file."""
    path = options.path.expanduser()
    if not path.is_file():
        nearby = [p.name for p in path.parent.glob("*.h5")] if path.parent.is_dir() else []
        raise UserError(f"data.path: there is no file {path}{did_you_mean(path.name, nearby)}")
    try:
        file = h5py.File(path, "r", locking=False)  # some file systems have no locks
    except OSError as error:
        raise UserError(
            f"data.path: {path} is not an HDF5 file that can be read ({error}){lock_cure(error)}; "
            "docs/data-format.md says what is needed"
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
    if encoding not in ("raw", "jpeg", "png", "files"):
        raise UserError(f"data.path: {path}: encoding is '{encoding}'; it must be raw, jpeg, png or files")
    train, test = (_images(path, file, part, len(class_names), encoding) for part in ("train", "test"))
    name, caption = _text(file.attrs.get("name", path.stem)), _text(file.attrs.get("caption", CAPTION))
    return assemble(options, name, class_names, wordings, train, test, caption)


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
    fits = rows.dtype == np.uint8 and (rows.ndim == 3 or (rows.ndim == 4 and rows.shape[3] in (1, 3)))
    if encoding == "raw" and not fits:
        raise UserError(
            f"data.path: {path}: {part}/images are {rows.dtype} of shape {rows.shape}; "
            "raw images must be uint8, 0 to 255, of shape (n, height, width, 1 or 3)"
        )
    if encoding != "raw" and h5py.check_vlen_dtype(rows.dtype) != np.uint8:
        raise UserError(
            f"data.path: {path}: {part}/images are {rows.dtype}; {encoding} images must be variable-length rows of uint8"
        )

    def raw(wanted: Sequence[int]) -> list[Raw]:
        """In stretches of neighbours, since one read of a compressed block costs as much as one of a single row."""
        result: list[Raw] = []
        for _, stretch in groupby(enumerate(wanted), lambda pair: pair[1] - pair[0]):
            numbers = [number for _, number in stretch]
            try:
                found = rows[numbers[0] : numbers[-1] + 1]
            except OSError:
                found = [_one(rows, number) for number in numbers]
            result += [row.tobytes() if encoding != "raw" and isinstance(row, np.ndarray) else row for row in found]
        return result

    columns = {
        name: partial(_column, column)
        for name, column in ((name, file[part].get(name)) for name in file[part])
        if name not in ("images", "labels") and isinstance(column, h5py.Dataset) and column.shape == labels.shape
    }
    return Images(labels, raw, lambda row: f"{path}: {part}/images[{row}]", columns, lambda: stamp([path], part))


def _column(column: h5py.Dataset) -> Column:
    values: Column = column.asstr()[:] if h5py.check_string_dtype(column.dtype) else column[:]
    return values


def _one(rows: h5py.Dataset, number: int) -> Raw:
    """A single row, or why it cannot be read."""
    try:
        return rows[number]  # type: ignore[no-any-return]
    except OSError as error:
        return error
