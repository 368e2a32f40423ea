"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, part of the library, nothing to download."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flora_hpc import extras
from flora_hpc.data.images import Dataset, DatasetOptions, Images, assemble

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Options(DatasetOptions):
    """Nothing beyond what every dataset has; test images are always drawn."""


def build(options: Options) -> Dataset:
    table = read()
    pixels = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = table[:, -1].astype(np.int64)
    images = Images(labels, lambda rows: [pixels[row] for row in rows], lambda row: f"digits[{row}]")
    return assemble(options, "digits", NAMES, NAMES, images, None, "a photo of the number {}.")


def read() -> npt.NDArray[np.float64]:
    """Read the table (1797, 65) float64: 64 pixels, 0 to 16, and the label.

    Reads scikit-learn's file without scikit-learn, whose import takes seconds. If the file is elsewhere, its loader reads it.
    """
    extras.need("data.name: digits", "sklearn")
    package = find_spec("sklearn")
    folders = package.submodule_search_locations if package else None
    for file in (Path(folder, "datasets", "data", "digits.csv.gz") for folder in folders or ()):
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.column_stack([data.data, data.target])
