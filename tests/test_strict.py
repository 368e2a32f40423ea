"""No value is converted to another type."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from flora_hpc.strict import StrictModel


class Options(StrictModel):
    whole: int = 0
    maybe: int | None = None
    number: float = 0.0
    positive: Annotated[float, Field(gt=0)] | None = None
    switch: bool = False
    word: str = ""
    choice: Literal["a", "b"] = "a"
    pair: tuple[int, float] = (0, 0.0)
    file: Path | None = None


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("whole", True, "int_type"),
        ("whole", "5", "int_type"),
        ("whole", "1_000", "int_type"),
        ("whole", 1.5, "int_from_float"),
        ("whole", 2.0**60, "int_type"),
        ("whole", 2**63, "less_than"),
        ("whole", -(2**63), "greater_than"),
        ("maybe", False, "int_type"),
        ("maybe", "3", "int_type"),
        ("number", True, "float_type"),
        ("number", "1e3", "float_type"),
        ("number", float("inf"), "finite_number"),
        ("number", float("nan"), "finite_number"),
        ("positive", True, "float_type"),
        ("switch", "yes", "bool_type"),
        ("switch", 1, "bool_type"),
        ("switch", 0.0, "bool_type"),
        ("word", 5, "string_type"),
        ("word", True, "string_type"),
        ("word", "a\0b", "flora_hpc"),
        ("word", "a\udcffb", "string_unicode"),
        ("choice", True, "literal_error"),
        ("pair", (1, True), "float_type"),
        ("pair", [1, "2"], "float_type"),
        ("file", 7, "path_type"),
        ("file", "a\0b", "flora_hpc"),
        ("file", "x" * 300, "flora_hpc"),
        ("file", "x/" * 3000, "flora_hpc"),
        ("file", "~nobody-of-this-name/x", "flora_hpc"),
    ],
)
def test_a_value_of_another_kind_is_refused(key: str, value: object, kind: str) -> None:
    with pytest.raises(ValidationError) as error:
        Options(**{key: value})
    assert {problem["type"] for problem in error.value.errors()} == {kind}
    assert {problem["loc"][0] for problem in error.value.errors()} == {key}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("whole", 3.0),  # 1e3 is exactly a whole number
        ("whole", 2**63 - 1),
        ("maybe", None),
        ("number", 3),
        ("switch", True),
        ("word", "yes"),
        ("pair", [1, 2]),
        ("file", "~/x"),
    ],
)
def test_a_value_of_its_kind_is_taken(key: str, value: object) -> None:
    Options(**{key: value})
