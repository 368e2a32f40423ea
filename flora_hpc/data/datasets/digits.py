"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, part of the library, nothing to download."""

import numpy as np

from flora_hpc.data.images import Dataset, DatasetOptions, Images, assemble

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Options(DatasetOptions):
    """Nothing beyond what every dataset has; test images are always drawn."""


def build(options: Options) -> Dataset:
    from sklearn.datasets import load_digits  # seconds of imports that other datasets need not pay

    data = load_digits()
    pixels, labels = np.round(data.images * (255 / 16)).astype(np.uint8), data.target.astype(np.int64)
    images = Images(labels, lambda rows: [pixels[row] for row in rows], lambda row: f"digits[{row}]")
    return assemble(options, "digits", NAMES, NAMES, images, None, "a photo of the number {}.")
