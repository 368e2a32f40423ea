"""The first digits of the bundled set, as a file of images."""

import json
from pathlib import Path

import h5py
import numpy as np

from flora_hpc.data.datasets import digits


def write(path: Path, num_train: int, num_test: int) -> Path:
    """Write `num_train` images to train with, and the next `num_test` ones to test with."""
    with np.load(digits.FILE) as known:
        images, labels = known["images"], known["labels"].astype(np.int64)
    pixels = np.round(images[..., None] * (255 / 16)).astype(np.uint8).repeat(3, axis=3)
    with h5py.File(path, "w") as file:
        for part, rows in (("train", slice(num_train)), ("test", slice(num_train, num_train + num_test))):
            file[f"{part}/images"], file[f"{part}/labels"] = pixels[rows], labels[rows]
        file.attrs.update(class_names=json.dumps(digits.NAMES), encoding="raw", name="digits")
    return path
