from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from flora_hpc.data import inputs
from flora_hpc.data.images import Images
from flora_hpc.data.inputs import Features, Pixels


class Counting:
    """Ten images that are their own index; notes what is read."""

    def __init__(self) -> None:
        self.read: list[int] = []
        images: Any = self.images
        self.pixels = Pixels(Images(np.zeros(10, np.int64), images), lambda i: torch.full((3, 2, 2), float(i)), torch.device("cpu"))

    def images(self, rows: Sequence[int]) -> list[int]:
        self.read += rows
        return list(rows)


def test_features_by_index() -> None:
    features = Features(torch.arange(12.0).view(4, 3))
    assert features(torch.tensor([[2, 0], [3, 3]])).tolist() == [[[6, 7, 8], [0, 1, 2]], [[9, 10, 11], [9, 10, 11]]]


@pytest.mark.parametrize("limit", [inputs.MAX_KEPT_BYTES, 0], ids=["kept", "too large to keep"])
def test_pixels_come_in_the_order_they_are_asked_for(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(inputs, "MAX_KEPT_BYTES", limit)
    source = Counting()
    for _ in range(2):
        given = source.pixels(torch.tensor([[7, 2, 7], [0, 9, 2]]))
        assert given.shape == (2, 3, 3, 2, 2)
        assert given[:, :, 0, 0, 0].tolist() == [[7, 2, 7], [0, 9, 2]]
    once = [0, 2, 7, 9]
    assert source.read == (once if limit else once * 2)


def test_only_what_is_missing_is_read() -> None:
    source = Counting()
    source.pixels(torch.tensor([3, 4]))
    source.pixels(torch.tensor([4, 5]))
    assert source.read == [3, 4, 5]
