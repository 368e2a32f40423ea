"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, part of the library, nothing to download."""

import numpy as np
from PIL import Image
from pydantic import Field

from flora_hpc import seeds
from flora_hpc.data.images import Dataset, DatasetOptions, Images, Ints

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Options(DatasetOptions):
    """Which digits are kept for testing."""

    caption: str = Field("a photo of the number {}.", description="caption of an image; {} stands for the name of its class")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="share of each digit's images kept for testing")


def build(options: Options) -> Dataset:
    from sklearn.datasets import load_digits  # seconds of imports that other datasets need not pay

    data = load_digits()
    pixels, labels = np.round(data.images * (255 / 16)).astype(np.uint8), data.target.astype(np.int64)
    order = seeds.generator(0, "digits: test images").permutation(len(labels))  # the same test set for every seed of a run
    test = np.zeros(len(labels), bool)
    for digit in range(10):
        of_digit = order[labels[order] == digit]
        test[of_digit[: max(1, round(options.test_fraction * len(of_digit)))]] = True

    def images(where: Ints) -> Images:
        return Images(
            labels[where],
            lambda rows: [Image.fromarray(pixels[where[row]]).convert("RGB") for row in rows],
        )

    captions = tuple(options.caption.format(name) for name in NAMES)
    return Dataset("digits", NAMES, NAMES, captions, images(np.flatnonzero(~test)), images(np.flatnonzero(test)))
