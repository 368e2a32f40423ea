import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flora_hpc.data.images import Dataset, DatasetOptions, Images, Raw, assemble, draw_test, join, stamp, with_validation
from flora_hpc.errors import UserError
from tests.data.made_images import made


def images(letters: str, labels: list[int] | None = None, **columns: list[Any]) -> Images:
    """An image for each letter, with the letter as bytes and the path `<letters>/<letter>`."""
    read = {name: (lambda values=values: np.array(values)) for name, values in columns.items()}
    numbers = np.array(labels or [0] * len(letters), np.int64)
    return Images(numbers, lambda rows: [letters[row].encode() for row in rows], lambda row: f"{letters}/{letters[row]}", read)


def stamped(parts: list[str | None]) -> Images:
    """Joined images whose parts have these stamps, or None."""

    def part(text: str | None) -> Images:
        nothing: list[Raw] = []
        return Images(np.zeros(1, np.int64), lambda rows: nothing, str, stamp=None if text is None else lambda: text)

    return join([part(text) for text in parts])


# --- take and join


def test_taken_images_are_in_the_order_asked_for() -> None:
    taken = images("abcd", [5, 6, 7, 8], client=[10, 20, 30, 40]).take(np.array([3, 1]))
    assert taken.labels.tolist() == [8, 6]
    assert taken.raw([0, 1]) == [b"d", b"b"]
    assert taken.raw([1]) == [b"b"]
    assert taken.where(0) == "abcd/d"
    assert taken.column("client", "key").tolist() == [40, 20]


def test_joined_images_lie_one_after_the_other() -> None:
    joined = join([images("ab", [0, 1]), images("c", [2]), images("de", [3, 4])])
    assert len(joined) == 5
    assert joined.labels.tolist() == [0, 1, 2, 3, 4]
    assert joined.raw([4, 0, 2, 3, 1]) == [b"e", b"a", b"c", b"d", b"b"]
    assert [joined.where(row) for row in range(5)] == ["ab/a", "ab/b", "c/c", "de/d", "de/e"]


def test_every_part_is_asked_once_for_what_it_has() -> None:
    asked = []

    def raw(rows: Any) -> list[Raw]:
        asked.append(list(rows))
        return [b""] * len(rows)

    joined = join([Images(np.zeros(2, np.int64), raw, str), Images(np.zeros(3, np.int64), raw, str)])
    joined.raw([4, 0, 3, 1])
    assert sorted(asked) == [[0, 1], [2, 1]]


def test_joined_columns_are_those_of_all() -> None:
    joined = join([images("ab", client=[1, 2], hour=[3, 4]), images("c", client=[5])])
    assert sorted(joined.columns) == ["client"]
    assert joined.column("client", "key").tolist() == [1, 2, 5]


def test_a_column_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(
        UserError, match=r"^partition\.column: the data has no column 'cleint'; did you mean 'client'\? \(it has client, hour\)$"
    ):
        images("a", hour=[0], client=[0]).column("cleint", "partition.column")
    with pytest.raises(UserError, match="it has none"):
        images("a").column("client", "partition.column")


# --- stamps


def test_joined_stamps_change_with_each_part() -> None:
    texts = [stamped(list(pair)).stamp() for pair in ("ab", "ac", "bb")]  # type: ignore[misc]
    assert len(set(texts)) == 3


def test_one_part_without_a_stamp_leaves_all_without() -> None:
    assert stamped(["a", None]).stamp is None


def test_a_stamp_changes_with_a_file_and_only_then(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    first = stamp([file])
    assert stamp([file]) == first
    assert stamp([file], "also") != first
    file.write_bytes(b"three")
    assert stamp([file]) != first
    second = stamp([file])
    os.utime(file, ns=(0, 0))
    assert stamp([file]) != second


def test_a_missing_file_has_a_stamp_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "a"
    missing = stamp([file])
    file.write_bytes(b"")
    assert stamp([file]) != missing


# --- assemble


def assembled(test: Images | None, labels: list[int], **options: object) -> Dataset:
    train = images("abcdefghij"[: len(labels)], labels)
    return assemble(DatasetOptions(name="letters", **options), "letters", ["x", "y_z"], ["x", "y z"], train, test, "the {}")


def test_official_parts_stay_as_they_are() -> None:
    dataset = assembled(images("xyz", [0, 1, 0]), [0, 1, 1])
    assert dataset.train.tolist() == [0, 1, 2]
    assert dataset.test.tolist() == [3, 4, 5]
    assert dataset.images.raw([3]) == [b"x"]


def test_merged_parts_are_drawn_anew() -> None:
    """A fifth of the five images of each class, at any place."""
    dataset = assembled(images("vwxyz", [0, 0, 0, 1, 1]), [0, 0, 1, 1, 1], split="merged")
    assert sorted([*dataset.train, *dataset.test]) == list(range(10))
    assert sorted(dataset.images.labels[dataset.test]) == [0, 1]


def test_without_official_test_images_some_are_drawn() -> None:
    dataset = assembled(None, [0] * 5 + [1] * 5, test_fraction=0.4)
    assert sorted(dataset.images.labels[dataset.test]) == [0, 0, 1, 1]
    assert sorted([*dataset.train, *dataset.test]) == list(range(10))


def test_captions_are_the_datasets_own_or_those_asked_for() -> None:
    assert assembled(None, [0, 1]).captions == ("the x", "the y z")
    assert assembled(None, [0, 1], caption="{}!").captions == ("x!", "y z!")
    assert assembled(None, [0, 1]).class_names == ("x", "y_z")


# --- drawing


@pytest.mark.parametrize(("size", "fraction", "expected"), [(1, 0.9, 0), (2, 0.01, 1), (2, 0.99, 1), (10, 0.2, 2), (10, 0.26, 3)])
def test_a_class_gives_its_share_but_at_least_one_and_never_all(size: int, fraction: float, expected: int) -> None:
    labels = np.array([1] * size + [0] * 10)
    assert draw_test(labels, fraction, "any")[:size].sum() == expected


def test_classes_without_images_are_no_trouble() -> None:
    assert draw_test(np.array([3, 3, 7, 7]), 0.5, "any").sum() == 2


def test_the_draw_depends_on_the_name_alone() -> None:
    labels = np.zeros(100, np.int64)
    drawn = draw_test(labels, 0.5, "one")
    assert drawn.tolist() == draw_test(labels, 0.5, "one").tolist()
    assert drawn.tolist() != draw_test(labels, 0.5, "two").tolist()
    assert drawn[:50].sum() not in (0, 50)  # not simply the first ones


# --- validation images


def validated(labels: list[int], fraction: float, name: str = "letters") -> Dataset:
    """All images are training images but the last one."""
    rows, words = np.arange(len(labels)), ("x", "y", "z")
    return with_validation(Dataset(name, words, words, words, made(labels), rows[:-1], rows[-1:]), fraction)


@pytest.mark.parametrize(("fraction", "counts"), [(0.01, [1, 1, 0]), (0.2, [2, 1, 0]), (0.5, [5, 2, 0]), (0.99, [9, 3, 0])])
def test_validation_images_are_a_share_of_each_class_of_the_training_images(fraction: float, counts: list[int]) -> None:
    """Ten images of x, four of y and one of z: at least one of a class, and never all."""
    dataset = validated([0] * 10 + [1] * 4 + [2] + [0], fraction)
    assert np.bincount(dataset.images.labels[dataset.validation], minlength=3).tolist() == counts
    assert sorted([*dataset.train, *dataset.validation]) == list(range(15))
    assert dataset.test.tolist() == [15]


def test_validation_images_are_always_the_same_ones_and_drawn_otherwise_than_test_images() -> None:
    labels = [0, 1] * 50
    first, second = validated([*labels, 0], 0.3), validated([*labels, 0], 0.3)
    np.testing.assert_array_equal(first.validation, second.validation)
    assert first.validation.tolist() != np.flatnonzero(draw_test(np.array(labels), 0.3, "letters")).tolist()
    assert first.validation.tolist() != validated([*labels, 0], 0.3, "other").validation.tolist()


def test_without_a_fraction_nothing_changes() -> None:
    dataset = validated([0, 0, 1, 1, 0], 0)
    assert dataset.train.tolist() == [0, 1, 2, 3]
    assert len(dataset.validation) == 0


def test_data_without_validation_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.validation_fraction: no class of letters has two training images, so none is left"):
        validated([0, 1, 2, 0], 0.5)
    pairs = replace(validated([0, 0, 1, 1, 0], 0), paired=True)
    with pytest.raises(UserError, match=r"data\.validation_fraction: is a share of each class, but pairs have no classes; leave"):
        with_validation(pairs, 0.1)


def test_images_that_cannot_be_decoded_are_no_validation_images() -> None:
    dataset = validated([0] * 10 + [0], 0.5)
    dropped = dataset.validation[:2].tolist()
    assert dataset.drop(dropped).validation.tolist() == dataset.validation[2:].tolist()
    assert dataset.drop(dropped).train.tolist() == dataset.train.tolist()


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5])
def test_a_fraction_is_a_share(fraction: float) -> None:
    with pytest.raises(ValueError, match="validation_fraction"):
        DatasetOptions(name="letters", validation_fraction=fraction)
