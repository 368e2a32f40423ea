"""One HDF5 file: {train,test}/{images,labels}, raw uint8 NHWC or the bytes of image files; docs/data-format.md describes it."""

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import h5py
import numpy as np
from pydantic import Field

from flora_hpc.data.datasets import _labels
from flora_hpc.data.datasets._hdf5 import Reader
from flora_hpc.data.images import CAPTION, Column, Dataset, DatasetOptions, Images, Raw, assemble, stamp
from flora_hpc.data.texts import name_fault, template_fault
from flora_hpc.errors import did_you_mean, reason

ENCODINGS = ("raw", "jpeg", "png", "files")
OBJECTS = ("train/images", "train/labels", "test/images", "test/labels")

CURES = {  # type or kind of images: how they become uint8
    "f": "; write (images * 255).round().astype('uint8') where they go from 0 to 1",
    "uint16": "; write (images >> 8).astype('uint8') where they go to 65535",
    "i": "; write images.astype('uint8') where they go from 0 to 255",
    "u": "; write images.astype('uint8') where they go from 0 to 255",
    "b": "; write images.astype('uint8') * 255",
}


class Options(DatasetOptions):
    """The file."""

    path: Path = Field(examples=["FILE.h5"], description="the HDF5 file")


def build(options: Options) -> Dataset:
    """Open the file and check its layout; images are read on request. Raises UserError for a wrong file."""
    reader = Reader.open(options.path)
    reader.require(OBJECTS, ("class_names", "encoding"))
    class_names = reader.names("class_names")
    wordings = reader.names("prompt_names") if reader.has("prompt_names") else class_names
    if len(wordings) != len(class_names):
        raise reader.mistake(f"has {len(class_names)} class_names but {len(wordings)} prompt_names; make them as many")
    encoding = reader.text("encoding")
    if encoding not in ENCODINGS:
        near = did_you_mean(encoding, ENCODINGS)
        raise reader.mistake(f"attribute encoding is '{encoding}'{near} (it must be raw, jpeg, png or files)")
    train, test = (_images(reader, part, class_names, encoding) for part in ("train", "test"))
    name = reader.text("name") if reader.has("name") else ""
    if (sign := name_fault(name)) is not None:
        raise reader.mistake(f"attribute name holds {sign}; write it without")
    return assemble(options, name or reader.path.stem, class_names, wordings, train, test, _caption(reader, options))


def _caption(reader: Reader, options: Options) -> str:
    """The template of the file, checked; the default if the file has none or `data.caption` replaces it."""
    if options.caption is not None or not reader.has("caption"):
        return CAPTION
    caption = reader.text("caption")
    if (why := template_fault(caption)) is not None:
        raise reader.mistake(f"attribute caption {why}; mend it, or set data.caption")
    return caption


def _images(reader: Reader, part: str, class_names: Sequence[str], encoding: str) -> Images:
    """The images of a part (train or test), after a check of their layout."""
    rows = reader.dataset(f"{part}/images")
    _check_images(reader, f"{part}/images", rows, encoding)
    labels = _labels.read(reader, part, len(rows), class_names)

    def raw(numbers: Sequence[int]) -> list[Raw]:
        """Read runs of neighbouring rows at once: reading a compressed block costs as much as reading a row of it."""
        result: list[Raw] = []
        for _, stretch in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
            run = [number for _, number in stretch]
            try:
                images = rows[run[0] : run[-1] + 1]
            except Exception:  # h5py raises anything on broken files
                images = [_one(rows, number) for number in run]
            result += [image.tobytes() if encoding != "raw" and isinstance(image, np.ndarray) else image for image in images]
        return result

    files = [reader.path, *reader.sources(rows)]
    return Images(
        labels,
        raw,
        lambda row: f"{reader.path}: {part}/images[{row}]",
        _columns(reader, part, len(rows)),
        lambda: stamp(files, part),
    )


def _check_images(reader: Reader, name: str, rows: h5py.Dataset, encoding: str) -> None:
    """Refuse images whose type or shape contradicts the encoding."""
    with reader.reading(name):
        shape, dtype, of_bytes = rows.shape, rows.dtype, h5py.check_vlen_dtype(rows.dtype) == np.uint8
    if encoding != "raw":
        if not of_bytes or len(shape) != 1:
            raise reader.mistake(
                f"{name} are {dtype} of shape {shape}; {encoding} images must be variable-length rows of uint8, of shape (n,)"
            )
        return
    if of_bytes:
        raise reader.mistake(f"{name} are rows of bytes, but attribute encoding is 'raw'; it must be jpeg, png or files")
    if dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))):
        cure = "; these have their channels first: write images.transpose(0, 2, 3, 1)"
        if dtype != np.uint8:
            cure = CURES.get(dtype.name, CURES.get(dtype.kind, ""))
        elif len(shape) != 4 or shape[1] not in (1, 3):
            cure = ""
        raise reader.mistake(
            f"{name} are {dtype} of shape {shape}; raw images must be uint8, 0 to 255, of shape (n, height, width, 1 or 3){cure}"
        )
    if 0 in shape[1:3]:
        raise reader.mistake(f"{name} are of shape {shape}, so that they have no pixels; write the images again")


def _one(rows: h5py.Dataset, number: int) -> Raw:
    """Read a single row, or return the error."""
    try:
        return rows[number]  # type: ignore[no-any-return]
    except OSError as error:
        return error
    except Exception as error:
        return OSError(reason(error))


def _columns(reader: Reader, part: str, num_images: int) -> dict[str, partial[Column]]:
    """Readers of the datasets that hold one number or one text for each image."""
    columns = {}
    with reader.reading(part):
        for name in reader.file[part]:
            column = None if name in ("images", "labels") else reader.file[part].get(name)
            if isinstance(column, h5py.Dataset) and _labels.is_line(column.shape, num_images) and _is_plain(column.dtype):
                columns[name] = partial(_column, reader, f"{part}/{name}")
    return columns


def _is_plain(dtype: np.dtype) -> bool:
    """Whether values are numbers, truth values or texts."""
    return dtype.kind in "biufS" or h5py.check_string_dtype(dtype) is not None


def _column(reader: Reader, name: str) -> Column:
    """Read the values of a column; texts become Python strings."""
    column = reader.dataset(name)
    with reader.reading(name):
        values: Column = (column.asstr() if h5py.check_string_dtype(column.dtype) else column)[()]
    return values.reshape(-1)
