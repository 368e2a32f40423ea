from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from flora_hpc.data import features
from flora_hpc.data.images import Images, Raw

NUM_IMAGES = 11
CPU = torch.device("cpu")


class Tower:
    """Encodes an image with first pixel v as (v, v^2, -v), and records the images of each call."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        value = pixels[:, 0, 0, 0]
        self.seen.append(value.int().tolist())
        return torch.stack([value, value * value, -value], 1)


def numbers(*damaged: int) -> Images:
    """Images whose pixels are their own index, some of them damaged."""

    def raw(rows: Sequence[int]) -> list[Raw]:
        return [b"" if row in damaged else np.full((2, 2), row, np.uint8) for row in rows]

    return Images(np.zeros(NUM_IMAGES, np.int64), raw, lambda row: f"image {row}")


def preprocess(image: Image.Image) -> torch.Tensor:
    return torch.full((3, 2, 2), float(np.asarray(image)[0, 0, 0]))


@pytest.fixture(autouse=True)
def blocks_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six blocks; the last holds one image."""
    monkeypatch.setattr(features, "BLOCK", 2)


def test_sizes_of_blocks() -> None:
    assert features.sizes(NUM_IMAGES) == [2, 2, 2, 2, 2, 1]
    assert [list(features.rows(number, NUM_IMAGES)) for number in (0, 4, 5)] == [[0, 1], [8, 9], [10]]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_features_come_block_by_block_in_order(num_threads: int) -> None:
    tower = Tower()
    blocks = list(features.encode(numbers(), [0, 3, 5], tower, 2, preprocess, CPU, num_threads))
    assert [number for number, _, _ in blocks] == [0, 3, 5]
    assert tower.seen == [[0, 1], [6, 7], [10]]
    assert torch.cat([values for _, values, _ in blocks]).tolist() == [[v, v * v, -v] for v in (0, 1, 6, 7, 10)]
    assert [damaged for _, _, damaged in blocks] == [{}, {}, {}]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_tower_sees_parts_of_a_block_and_none_of_two(num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of five images, two at once; the last block holds one image."""
    monkeypatch.setattr(features, "BLOCK", 5)
    tower = Tower()
    blocks = list(features.encode(numbers(4, 5), [0, 1, 2], tower, 2, preprocess, CPU, num_threads, batch=2))
    assert tower.seen == [[0, 1], [2, 3], [0], [0, 6], [7, 8], [9], [10]]  # a damaged one is blank
    assert [number for number, _, _ in blocks] == [0, 1, 2]
    all_values = torch.cat([values for _, values, _ in blocks])
    assert all_values[:, 0].nan_to_num(-1).tolist() == [0, 1, 2, 3, -1, -1, 6, 7, 8, 9, 10]
    assert [list(damaged) for _, _, damaged in blocks] == [[4], [5], []]


def test_no_block() -> None:
    assert list(features.encode(numbers(), [], Tower(), 2, preprocess, CPU, 1)) == []


def test_a_damaged_image_has_no_feature_and_is_told() -> None:
    ((_, values, damaged),) = features.encode(numbers(3), [1], Tower(), 2, preprocess, CPU, 1)
    assert values[0].tolist() == [2, 4, -2]
    assert values[1].isnan().all()
    assert damaged == {3: "it is empty"}


def test_features_in_half_the_size() -> None:
    ((_, values, _),) = features.encode(numbers(), [5], Tower(), 2, preprocess, CPU, 1, torch.bfloat16)
    assert values.dtype == torch.bfloat16


def test_damage_is_found_without_a_model() -> None:
    assert features.find_damage(numbers(3, 4, 10), range(6), 2) == dict.fromkeys((3, 4, 10), "it is empty")
    assert features.find_damage(numbers(3, 4, 10), [0, 2], 2) == {4: "it is empty"}


# --- what decides whether features can be used again


def test_a_digest_depends_on_all_bytes_of_its_block_alone() -> None:
    before = features.digests(numbers(), range(6))
    assert len(set(before)) == 6
    after = features.digests(numbers(3), range(6))
    assert [number for number in range(6) if before[number] != after[number]] == [1]
    assert features.digests(numbers(), [4, 1]) == [before[4], before[1]]


def test_a_digest_tells_where_an_image_ends() -> None:
    def digest(*stored: Raw) -> bytes:
        images = Images(np.zeros(len(stored), np.int64), lambda rows: [stored[row] for row in rows], str)
        return features.digests(images, [0])[0]

    pixels = np.zeros((2, 3), np.uint8)
    digests = [
        digest(b"ab", b"c"), digest(b"a", b"bc"), digest(b"abc", b""), digest(OSError("gone"), b""),
        digest(pixels, b""), digest(pixels.T, b""), digest(pixels.tobytes(), b""),
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)
