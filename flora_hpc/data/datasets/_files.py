"""Read image files and columns: helpers of all datasets that consist of image files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flora_hpc.data.images import Column

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's IMG_EXTENSIONS
IMAGE_SUFFIXES = (*SUFFIXES, ".gif", ".jfif", ".jpe", ".tga")  # a file with such a suffix that is no image is a damaged image


def read(path: Path) -> bytes | OSError:
    """The bytes of a file, or the error of reading it."""
    try:
        return path.read_bytes()
    except OSError as error:
        return error


def columns(rows: Sequence[Mapping[str, object]]) -> dict[str, Column]:
    """Columns from rows, for keys with a plain value in every row: int64, float64 or bool, and text for anything else."""
    result: dict[str, Column] = {}
    for name in filter(None, rows[0] if rows else ()):  # pandas writes row numbers into a column without a name
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values}
        if kinds == {bool} or kinds == {int} or kinds <= {int, float}:
            result[name] = np.array(values)
        elif kinds <= {str, int, float, bool}:
            result[name] = np.array([str(value) for value in values], object)
    return result
