from typing import Any

import numpy as np
import pytest
import torch

from flora_hpc.data import features
from flora_hpc.data.images import Images

NUM_IMAGES = 11
EXPECTED = np.array([[i, i * i, -i] for i in range(NUM_IMAGES)], np.float32)


class Model:
    """Gives (v, v^2, -v) for an image whose first pixel is v, and notes which images it saw together."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def encode_image(self, pixels: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        assert not normalize, "some methods want features as they are"
        value = pixels[:, 0, 0, 0]
        self.seen.append(value.int().tolist())
        return torch.stack([value, value * value, -value], 1)


def numbers(num_images: int = NUM_IMAGES) -> Images:
    """Images that are their own index."""
    read: Any = list
    return Images(np.zeros(num_images, np.int64), read)


def preprocess(image: int) -> torch.Tensor:
    return torch.full((3, 2, 2), float(image))


def encode(model: Model, rank: int, size: int, images: Images | None = None) -> features.Floats:
    return features.encode(images or numbers(), model, preprocess, torch.device("cpu"), rank, size)


@pytest.fixture(autouse=True)
def blocks_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six blocks; the last holds one image."""
    monkeypatch.setattr(features, "BLOCK", 2)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_any_number_of_ranks_gives_every_images_feature_in_order(size: int) -> None:
    """Eight ranks are more than there are blocks."""
    shares = [encode(Model(), rank, size).tobytes() for rank in range(size)]
    found = features.assemble(shares, NUM_IMAGES)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, EXPECTED)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_same_images_are_encoded_together_whatever_the_number_of_ranks(size: int) -> None:
    """The shape of a matrix product may decide its last bits."""
    model = Model()
    for rank in range(size):
        encode(model, rank, size)
    assert sorted(model.seen) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]


def test_blocks_go_to_ranks_in_turn() -> None:
    model = Model()
    encode(model, rank=1, size=4)
    assert model.seen == [[2, 3], [10]]


def test_a_rank_without_a_block_has_nothing_to_send() -> None:
    assert encode(Model(), rank=6, size=8).nbytes == 0


def test_fewer_images_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BLOCK", 256)
    shares = [encode(Model(), rank, 2, numbers(3)).tobytes() for rank in range(2)]
    np.testing.assert_array_equal(features.assemble(shares, 3), EXPECTED[:3])
