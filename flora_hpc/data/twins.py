"""Find images with equal features: test images equal to training images, and training images all equal."""

import numpy as np
import numpy.typing as npt
import torch

from flora_hpc.data.images import Dataset

BATCH = 4096  # features hashed in one matrix product
COMPARED = 128  # leading numbers of a feature that are compared


def warnings(dataset: Dataset, features: torch.Tensor) -> list[str]:
    """Warnings about images with equal features, which the model cannot distinguish. A few such images may be missed."""
    numbers = marks(features[:, :COMPARED])
    train, test = numbers[dataset.train], numbers[dataset.test]
    if len(train) > 1 and len(np.unique(train)) == 1:
        return [
            f"all {len(train):,} training images look the same to the model, so nothing can be learned from them; check the files"
        ]
    shared = int(np.isin(test, train).sum())
    if not shared:
        return []
    return [
        f"{shared:,} of {len(test):,} test images look exactly like a training image to the model, so test accuracy also measures "
        "what was learned by heart; take them out of one of the two"
    ]


def marks(rows: torch.Tensor) -> npt.NDArray[np.uint64]:
    """Hash rows (num_rows, length), 2 or 4 bytes a value, to numbers (num_rows,): equal for equal bits, else different."""
    words = torch.int32 if rows.element_size() == 4 else torch.int16
    factors = np.random.default_rng(0).integers(2**63, size=rows.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    parts = [part.contiguous().view(words).numpy().astype(np.uint64) @ factors for part in torch.split(rows, BATCH)]
    return np.concatenate(parts)
