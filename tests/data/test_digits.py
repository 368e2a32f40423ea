from typing import Any

import numpy as np
import pytest
from PIL import Image

from flora_hpc.data.datasets import digits
from flora_hpc.data.decode import rgb
from flora_hpc.data.images import Dataset, Images, Ints


def build(**options: object) -> Dataset:
    return digits.build(digits.Options(name="digits", **options))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return build()


def load_digits() -> Any:
    from sklearn.datasets import load_digits  # an import of some seconds

    return load_digits()


def all_images(images: Images, rows: Ints) -> list[Image.Image]:
    return [rgb(raw) for raw in images.raw(rows.tolist())]


def counts(dataset: Dataset) -> list[int]:
    """Number of test images of each digit."""
    return np.bincount(dataset.images.labels[dataset.test]).tolist()


def test_train_and_test_together_are_scikit_learns_digits_each_once(dataset: Dataset) -> None:
    """Pixels 0..16 become 0..255, so that dividing by 255 / 16 gives scikit-learn's numbers back."""
    pairs = []
    for rows in (dataset.train, dataset.test):
        for image, label in zip(all_images(dataset.images, rows), dataset.images.labels[rows], strict=True):
            pixels = np.asarray(image)[:, :, 0] * (16 / 255)
            pairs.append((int(label), np.round(pixels).astype(int).tobytes()))
    data = load_digits()
    expected = [(int(label), pixels.astype(int).tobytes()) for pixels, label in zip(data.images, data.target, strict=True)]
    assert len(pairs) == 1797
    assert sorted(pairs) == sorted(expected)


def test_they_are_in_scikit_learns_order(dataset: Dataset) -> None:
    """Seeds and splits of runs refer to rows."""
    np.testing.assert_array_equal(dataset.images.labels, load_digits().target)
    with np.load(digits.FILE) as file:
        np.testing.assert_array_equal(file["images"], load_digits().images)


def test_the_brightest_pixel_becomes_255(dataset: Dataset) -> None:
    brightest = max(image.getextrema()[0][1] for image in all_images(dataset.images, dataset.test))
    assert brightest == 255


def test_images_are_rgb_of_eight_by_eight(dataset: Dataset) -> None:
    assert {(image.mode, image.size) for image in all_images(dataset.images, dataset.test)} == {("RGB", (8, 8))}


def test_some_images_can_be_read_alone(dataset: Dataset) -> None:
    everything = all_images(dataset.images, np.arange(1797))
    for image, row in zip(dataset.images.raw([7, 5]), (7, 5), strict=True):
        assert rgb(image).tobytes() == everything[row].tobytes()


def test_an_image_is_told_by_its_number(dataset: Dataset) -> None:
    assert dataset.images.where(12) == "digits[12]"


def test_a_fifth_of_each_digit_is_for_testing(dataset: Dataset) -> None:
    """A fifth of 178, 182, 177, 183, 181, 182, 181, 179, 174 and 180 images, rounded."""
    assert counts(dataset) == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]


def test_another_share_can_be_chosen() -> None:
    assert counts(build(test_fraction=0.5)) == [89, 91, 88, 92, 90, 91, 90, 90, 87, 90]


def test_the_smallest_share_keeps_one_image_of_each_digit() -> None:
    assert counts(build(test_fraction=0.0001)) == [1] * 10


def test_the_test_set_is_always_the_same(dataset: Dataset) -> None:
    np.random.seed(123)  # what others do with the global generator does not matter
    again = build()
    np.testing.assert_array_equal(again.test, dataset.test)
    np.testing.assert_array_equal(again.images.labels, dataset.images.labels)


def test_captions_name_the_number(dataset: Dataset) -> None:
    assert dataset.captions[:3] == ("a photo of the number zero.", "a photo of the number one.", "a photo of the number two.")
    assert len(dataset.captions) == len(dataset.class_names) == 10


def test_the_caption_can_be_chosen() -> None:
    assert build(caption="{}!").captions[9] == "nine!"
