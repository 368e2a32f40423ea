"""Images that look the same to the model: test images that clients have trained on, and sets of one picture."""

import numpy as np
import numpy.typing as npt
import torch

from flora_hpc.data.images import Dataset

AT_ONCE = 4096  # features that are hashed at once
SEEN = 128  # numbers of a feature that tell two pictures apart


def warnings(dataset: Dataset, features: torch.Tensor) -> list[str]:
    """Warnings about images that have one feature, so that the model sees the same picture. A few such images may be missed."""
    numbers = marks(features[:, :SEEN])
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
    """A number (num_rows,) for each row (num_rows, length) of 2 or 4 bytes a value: the same for the same bits, else another."""
    words = torch.int32 if rows.element_size() == 4 else torch.int16
    factors = np.random.default_rng(0).integers(2**63, size=rows.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    parts = [part.contiguous().view(words).numpy().astype(np.uint64) @ factors for part in torch.split(rows, AT_ONCE)]
    return np.concatenate(parts)
