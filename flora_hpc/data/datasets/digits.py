"""1,797 handwritten digits of 8 x 8 pixels (UCI, as in scikit-learn), which come with the package: nothing to download."""

from pathlib import Path

import numpy as np

from flora_hpc.data.images import Dataset, DatasetOptions, Images, assemble

FILE = Path(__file__).parent.parent / "digits.npz"  # digits.md says whose they are
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Options(DatasetOptions):
    """Nothing beyond what every dataset has; test images are always drawn."""


def build(options: Options) -> Dataset:
    with np.load(FILE) as file:
        pixels, labels = np.round(file["images"] * (255 / 16)).astype(np.uint8), file["labels"].astype(np.int64)
    images = Images(labels, lambda rows: [pixels[row] for row in rows], lambda row: f"digits[{row}]")
    return assemble(options, "digits", NAMES, NAMES, images, None, "a photo of the number {}.")
