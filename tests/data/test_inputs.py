from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from flora_hpc.data import inputs
from flora_hpc.data.images import Images, Raw
from flora_hpc.data.inputs import Features, Pixels
from flora_hpc.errors import UserError


class Counting:
    """Ten images whose pixels are their index; records the rows read. Image 9 can be damaged."""

    def __init__(self, damaged: bool = False) -> None:
        self.read: list[int] = []
        self.damaged = damaged
        images = Images(np.zeros(10, np.int64), self.raw, lambda row: f"image {row}")
        self.pixels = Pixels(images, first_pixel, torch.device("cpu"), num_threads=2)

    def raw(self, rows: Sequence[int]) -> list[Raw]:
        self.read += rows
        return [b"" if self.damaged and row == 9 else np.full((2, 2), row, np.uint8) for row in rows]


def first_pixel(image: Image.Image) -> torch.Tensor:
    return torch.full((3, 2, 2), float(np.asarray(image)[0, 0, 0]))


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


def test_an_image_that_was_damaged_meanwhile_is_named() -> None:
    with pytest.raises(UserError, match="image 9 can no longer be decoded: it is empty; the data must not change in a run"):
        Counting(damaged=True).pixels(torch.tensor([8, 9]))


def test_features_kept_in_bfloat16_come_as_float32() -> None:
    given = Features(torch.tensor([[1.0], [1.001]], dtype=torch.bfloat16))(torch.tensor([1]))
    assert given.dtype == torch.float32
    assert given.tolist() == [[1.0]]  # what 8 bits of mantissa leave


@pytest.mark.parametrize(("free", "resident"), [(8 * 40, True), (8 * 40 - 1, False)])
def test_features_that_fit_twice_into_the_gpu_lie_there(free: int, resident: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: (moved.append(device), tensor)[1])
    values = torch.zeros(10, 4)  # 160 bytes
    assert Features.near(values, torch.device("cuda")).values is values
    assert moved == ([torch.device("cuda")] if resident else [])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_features_on_the_host_are_fetched_to_the_gpu() -> None:
    values = torch.arange(40.0).view(10, 4)
    rows = torch.tensor([[3, 0], [9, 3]], device="cuda")
    assert torch.equal(Features(values)(rows).cpu(), values[rows.cpu()])
