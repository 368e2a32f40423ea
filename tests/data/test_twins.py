import numpy as np
import pytest
import torch

from flora_hpc.data.images import Dataset
from flora_hpc.data.twins import warnings
from tests.data.made_images import made

ROWS = Dataset("zoo", ("a", "b"), ("a", "b"), ("a", "b"), made([0, 1, 0, 1, 0]), np.arange(3), np.arange(3, 5))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_test_images_that_are_training_images_are_counted(kind: torch.dtype) -> None:
    features = torch.tensor([[1.0, 2], [2, 1], [3, 3], [2, 1], [1, 2.5]], dtype=kind)
    (sentence,) = warnings(ROWS, features)
    assert sentence.startswith("1 of 2 test images look exactly like a training image to the model")


def test_training_images_that_are_all_the_same() -> None:
    features = torch.tensor([[1.0, 2], [1, 2], [1, 2], [4, 1], [1, 2.5]])
    (sentence,) = warnings(ROWS, features)
    assert sentence.startswith("all 3 training images look the same to the model")


def test_images_that_differ_in_a_bit() -> None:
    """Also for the same numbers in another order, and in one of many blocks."""
    step = np.nextafter(np.float32(1), np.float32(2))
    features = torch.tensor([[1.0, 2], [2, 1], [3, 3], [float(step), 2], [1, 3]])
    assert warnings(ROWS, features) == []
