import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flora_hpc.data.images import Images, Raw
from flora_hpc.data.look import SAMPLE, Inspection, inspect, sample


def images(*raws: Raw) -> Images:
    def raw(rows: Sequence[int]) -> list[Raw]:
        return [raws[row] for row in rows]

    return Images(np.zeros(len(raws), np.int64), raw, lambda row: f"image {row}")


def inspected(*raws: Raw) -> Inspection:
    return inspect(images(*raws), range(len(raws)), num_threads=2)


def stored(form: str, *frames: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    frames[0].save(buffer, form, **({"save_all": True, "append_images": frames[1:]} if len(frames) > 1 else {}), **options)
    return buffer.getvalue()


def shades(low: int, high: int) -> np.ndarray:
    return np.array([[low, high]], np.uint8)


@pytest.mark.parametrize(
    ("raw", "faint"),
    [
        (shades(0, 1), True),  # scaled to 0..1 and cast
        (shades(0, 16), True),
        (shades(240, 255), True),
        (shades(0, 17), False),
        (np.array([[[9, 9, 0], [9, 9, 99]]], np.uint8), False),  # one channel is enough
        (stored("PNG", Image.fromarray(np.array([[0, 4095]], np.uint16))), True),  # 12 bits in 16: the upper 8 say little
        (
            stored("PNG", Image.fromarray(np.array([[[255, 255, 255, 0], [255, 255, 255, 255]]], np.uint8))),
            True,
        ),  # white on nothing
        (stored("PNG", Image.fromarray(np.array([[[0, 0, 0, 0], [0, 0, 0, 255]]], np.uint8))), False),
    ],
)
def test_pictures_in_which_nothing_can_be_seen(raw: Raw, faint: bool) -> None:
    assert inspected(raw).faint == ((0,) if faint else ())


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_pictures_of_several_frames(form: str) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    assert inspected(stored(form, first), stored(form, first, second)).animated == (1,)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_a_file_that_is_cut_off_after_its_first_frame(form: str) -> None:
    """For any length of the cut file: the inspection ends, and the whole frame is used."""
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)) for _ in range(3)]
    whole = stored(form, *frames)
    first = len(stored(form, frames[0]))
    raws = [whole[:end] for end in range(first, len(whole), max(1, (len(whole) - first) // 60))]
    damaged = inspect(images(*raws), range(len(raws)), num_threads=2).damaged
    assert form != "GIF" or len(damaged) < len(raws)


def test_a_photo_with_a_preview_is_no_animation() -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    assert inspected(stored("MPO", first, second)).animated == ()


def test_damage_is_told_beside_the_rest_whatever_thread_meets_it() -> None:
    raws: list[Raw] = [shades(0, 200)] * 30
    raws[9], raws[29] = b"", shades(3, 4)
    assert inspected(*raws) == Inspection(30, {9: "it is empty"}, (29,), ())


def test_sentences_name_three() -> None:
    (faint,) = Inspection(2000, {}, (4, 5, 6, 7), ()).warnings(images())
    assert faint.startswith(
        "4 of 2,000 images looked at show hardly anything, for their pixels differ by 16 of 255 levels at most, "
    )
    assert ", such as image 4, image 5, image 6; were they scaled to 0..1 " in faint
    (frames,) = Inspection(5, {}, (), (0,)).warnings(images())
    assert frames == "1 of 5 images looked at have several frames or pages, such as image 0; only the first is used"


def test_a_few_are_no_reason_to_warn() -> None:
    assert Inspection(20, {}, (1, 2), (3,)).warnings(images(), 0.1) == ()
    assert len(Inspection(20, {}, (1, 2, 3), (3,)).warnings(images(), 0.1)) == 1
    assert Inspection().warnings(images(), 0.1) == Inspection().warnings(images()) == ()


@pytest.mark.parametrize("count", [0, 1, 2, SAMPLE, SAMPLE + 1, 100_000])
def test_a_sample_is_spread_over_all(count: int) -> None:
    rows = np.arange(count) + 7
    chosen = sample(rows)
    assert len(chosen) == len(set(chosen)) == min(count, SAMPLE)
    assert not count or (chosen[0], chosen[-1]) == (7, count + 6)
