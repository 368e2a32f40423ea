import numpy as np
import pytest

from flora_hpc.data.checks import checked, refuse_alike
from flora_hpc.data.images import Dataset
from flora_hpc.errors import UserError
from tests.data.made_images import made


def zoo(
    labels: list[int], names: str = "cat dog owl", num_test: int = 3, captions: tuple[str, ...] = (), paired: bool = False
) -> Dataset:
    """The last `num_test` images are for testing."""
    words = tuple(names.split())
    rows = np.arange(len(labels))
    cut = len(labels) - num_test
    return Dataset(
        "zoo", words, words, captions or tuple(f"a {word}." for word in words), made(labels), rows[:cut], rows[cut:], paired
    )


def mistake(dataset: Dataset) -> str:
    with pytest.raises(UserError) as caught:
        checked(dataset)
    return str(caught.value)


def test_good_data_have_no_warning() -> None:
    dataset = zoo([0, 1, 2, 0, 1, 2])
    assert checked(dataset) == dataset


def test_a_single_class_is_refused() -> None:
    assert "zoo has the single class 'cat', so every answer is right" in mistake(zoo([0] * 6, "cat"))


def test_training_images_of_one_class_are_refused() -> None:
    """Test images of other classes do not help."""
    assert "all 3 training images of zoo have the class 'dog', so nothing can be learned" in mistake(zoo([1, 1, 1, 0, 1, 2]))
    assert "have the caption 'cat'" in mistake(zoo([0, 0, 0, 0, 1, 2], paired=True))


def test_no_test_image_is_refused() -> None:
    """An example: every class has one image, so no image can be drawn for testing."""
    assert "zoo has no test image; of a class with one image none is left for testing: add" in mistake(zoo([0, 1, 2], num_test=0))
    assert "zoo has no test image; add test images" in mistake(zoo([0, 1, 1], num_test=0))


def test_two_classes_of_one_caption_are_both_named() -> None:
    captions = ("a bird.", "a dog.", "a bird.")
    message = mistake(zoo([0, 1, 2, 0, 1, 2], captions=captions))
    assert "classes 'cat' and 'owl' of zoo cannot be told apart: they have the same caption, 'a bird.'; give each class" in message
    with pytest.raises(UserError, match="so it is with 1 more pair of classes"):
        refuse_alike(zoo([0, 1, 2], captions=("x",) * 3))
    refuse_alike(zoo([0, 1, 2], captions=captions, paired=True))


@pytest.mark.parametrize(
    ("labels", "num_test", "expected"),
    [
        ([0, 1, 0, 0, 1, 2], 3, "1 of 3 classes have no training image, so nobody trains on them: owl"),
        ([0, 1, 2, 0, 1, 1], 3, "1 of 3 classes have no test image, so accuracy says nothing about them: owl"),
        ([0, 1, 0, 0, 1, 1], 3, "1 of 3 classes have no image, so they are possible answers even so: owl"),
        ([0, 1, 2, 0, 0, 0], 3, "all 3 test images have the class 'cat'; check the labels"),
        ([0, 1, 2, 0, 1, 2], 1, "there is a single test image, so test accuracy is 0 or 1"),
    ],
)
def test_odd_data_get_a_warning(labels: list[int], num_test: int, expected: str) -> None:
    dataset = checked(zoo(labels, num_test=num_test))
    assert any(sentence.startswith(expected) for sentence in dataset.warnings)
    assert checked(dataset).warnings == dataset.warnings  # each once


def test_test_pairs_of_one_caption() -> None:
    assert checked(zoo([0, 1, 2, 1, 1, 1], paired=True)).warnings == (
        "all 3 test images have the caption 'dog', so test accuracy is 1 whatever is learned; check the labels",
    )
