"""Read the labels of an HDF5 file: whole numbers of any type or names of classes, as a vector or a column."""

import math
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from flora_hpc.data.datasets._hdf5 import Reader
from flora_hpc.data.images import Ints
from flora_hpc.errors import did_you_mean


def read(reader: Reader, part: str, num_images: int, class_names: Sequence[str]) -> Ints:
    """The class of each image of a part (num_images,) int64. Raises UserError for values that cannot be labels."""
    name = f"{part}/labels"
    table = reader.dataset(name)
    with reader.reading(name):
        shape, dtype = table.shape, table.dtype
    if shape == ():
        raise reader.mistake(f"{name} is a single value; it needs one for each of the {num_images:,} images")
    if math.prod(shape) != max(shape):
        cure = "; write labels.argmax(1)" if shape == (num_images, len(class_names)) else ""
        raise reader.mistake(f"{name} are of shape {shape}; they must be of shape ({num_images},), one number an image{cure}")
    if math.prod(shape) != num_images or num_images == 0:
        raise reader.mistake(
            f"{part} has {num_images} images and {math.prod(shape)} labels; it needs as many labels as images, and at least one"
        )
    with reader.reading(name):
        values = (table.asstr() if h5py.check_string_dtype(dtype) else table)[()].reshape(-1)
    kinds = h5py.check_enum_dtype(dtype)
    if kinds is not None:
        words = {number: word for word, number in kinds.items()}
        return _of_names(reader, name, [words.get(value, str(value)) for value in values.tolist()], class_names)
    if h5py.check_string_dtype(dtype):
        return _of_names(reader, name, values.tolist(), class_names)
    return _of_numbers(reader, name, values, dtype, len(class_names))


def is_line(shape: tuple[int, ...] | None, length: int) -> bool:
    """Whether a shape is (length,), (length, 1) or (1, length), or more axes of length 1."""
    return bool(shape) and math.prod(shape) == max(shape) == length  # type: ignore[arg-type]


def _of_names(reader: Reader, name: str, texts: list[str], class_names: Sequence[str]) -> Ints:
    """Labels from names of classes."""
    numbers = {class_name: i for i, class_name in enumerate(class_names)}
    for row, text in enumerate(texts):
        if text not in numbers:
            cure = did_you_mean(text, class_names) or "; write the numbers of classes, or their names"
            if text.strip().isdecimal():
                cure = ", but a text; write whole numbers: labels.astype(int)"
            raise reader.mistake(f"{name}[{row}] is {text!r}, which is no class of class_names{cure}")
    if len(numbers) < len(class_names):
        twice = next(class_name for i, class_name in enumerate(class_names) if numbers[class_name] != i)
        raise reader.mistake(f"{name} are names, but class_names has '{twice}' twice; write numbers, or give each class its name")
    return np.array([numbers[text] for text in texts], np.int64)


def _of_numbers(reader: Reader, name: str, values: npt.NDArray[Any], dtype: np.dtype, num_classes: int) -> Ints:
    """Labels from whole numbers of any type."""
    if dtype.kind not in "biuf":
        raise reader.mistake(f"{name} are of type {dtype}; labels must be whole numbers, or names of class_names")
    if dtype.kind == "f":
        wrong = np.flatnonzero(~(np.isfinite(values) & (values == np.floor(values))))
        if len(wrong):
            raise reader.mistake(
                f"{name}[{wrong[0]}] is {values[wrong[0]]}, and {len(wrong):,} of {len(values):,} labels are no whole numbers; "
                f"each must be a number of a class, 0 to {num_classes - 1}"
            )
    if values.min() < 0 or values.max() >= num_classes:
        cure = "; write labels - 1" if (values.min(), values.max()) == (1, num_classes) else ""
        raise reader.mistake(
            f"{name} go from {int(values.min())} to {int(values.max())}, "
            f"but there are {num_classes} classes, 0 to {num_classes - 1}{cure}"
        )
    return values.astype(np.int64)
