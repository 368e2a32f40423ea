from typing import Any

import pytest

from flora_hpc.errors import UserError
from flora_hpc.records.study import Point
from flora_hpc.report import study_words
from flora_hpc.report.study_finals import is_log
from flora_hpc.report.study_grid import Grid, layout
from flora_hpc.studies.statistics import settings
from tests.report.made_studies import grid


def points(**values: Any) -> list[Point]:
    return [Point("p", keys) for keys, _ in grid(num_seeds=2, **values)]


def laid_out(all_points: list[Point]) -> Grid:
    return layout(settings(all_points))


def test_the_key_with_most_values_has_lines_and_others_have_panels() -> None:
    found = laid_out(points(a=[1, 2], b=["x", "y", "z"], c=[True, False]))
    assert found.keys == ("a", "b", "c")
    assert found.lines is not None
    assert found.lines.key == "b"
    assert [axis.key for axis in found.panels] == ["a", "c"]
    assert found.rest == ()


def test_a_key_with_too_many_values_for_lines_has_panels() -> None:
    found = laid_out(points(a=list(range(13)), b=[1, 2]))
    assert found.lines is not None
    assert (found.lines.key, [axis.key for axis in found.panels]) == ("b", ["a"])
    assert laid_out(points(a=list(range(13)))).lines is None


def test_more_combinations_than_panels_are_left_to_a_choice() -> None:
    found = laid_out(points(a=list(range(12)), b=list(range(5)), c=list(range(5))))
    assert [axis.key for axis in found.panels] == ["b"]
    assert found.rest == ("c",)


def test_numbers_ascend_and_names_stay_as_they_came() -> None:
    found = laid_out(points(a=[100, 9, 10.5], b=["z", "a"]))
    assert found.axes[0].numbers == (9, 10.5, 100)
    assert [keys["b"] for keys in found.axes[1].samples] == ["z", "a"]


def test_keys_that_do_not_vary_and_keys_that_follow_another_are_no_axes() -> None:
    """cohort.size changes with the number of clients, as in a zipped or derived grid."""
    rows = [Point("p", {"n": n, "cohort": n // 10, "fixed": 1, "lr": lr, "seed": 0}) for n in (10, 100, 1000) for lr in (1, 2)]
    found = laid_out(rows)
    assert found.keys == ("n", "lr")
    assert found.along == {"cohort": "n"}


def test_a_key_that_some_points_lack_differs_from_null() -> None:
    found = laid_out([Point("p", {"a": 1}), Point("p", {"a": 1, "b": None}), Point("p", {"a": 1, "b": 2})])
    (axis,) = found.axes
    assert len(axis) == 3
    assert axis.numbers is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([10, 100, 1000], True),
        ([1, 2, 4, 8], True),
        ([1, 2, 3, 4], False),
        ([0, 100, 1000], False),
        ([1, 20, 5], False),
        ([1, 21, 5], True),
    ],
)
def test_wide_keys_have_logarithmic_axes(values: list[float], expected: bool) -> None:
    assert is_log(laid_out(points(a=values)).axes[0]) is expected


def test_texts_of_settings() -> None:
    names = study_words.names([], [])
    keys = {"method.name": "flora", "client.lr": 5e-05, "n": 10000, "x": [1, None], "flag": True, "text": "a"}
    assert names.setting(keys, list(keys)) == "flora, client.lr=5e-05, n=10,000, x=[1, null], flag=true, text=a"
    assert names.setting({}, []) == "all points"
    assert names.value({}, "n") == "-"
    assert study_words.text_of(0.1234567891) == "0.1234567891", "no digit is lost"


def test_labels_name_keys_and_values() -> None:
    names = study_words.names(points(method__name=["flora"], method__rank=[4]), ["method.rank=rank", "flora=FLoRA", "4=four"])
    assert names.setting({"method.name": "flora", "method.rank": 4}, ["method.name", "method.rank"]) == "FLoRA, rank=four"


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        ("rank", "--label rank: is not KEY=TEXT; give for example --label method.rank=rank"),
        ("=x", "--label =x: is not KEY=TEXT; give for example --label method.rank=rank"),
        (
            "method.rang=x",
            "--label method.rang=x: 'method.rang' is no key and no value of this study; did you mean 'method.rank'? "
            "(keys: method.rank)",
        ),
    ],
)
def test_bad_labels(label: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        study_words.names(points(method__rank=[4, 8]), [label])
    assert str(error.value) == sentence
