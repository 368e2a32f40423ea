"""The base class of all options: options are frozen, unknown keys are refused, and no value is converted."""

import os
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

EXACT = 2**53  # up to here every whole number has its own float
MAX_PATH, MAX_NAME = 4095, 255  # bytes, on Linux
LIMIT = 2**63  # of 64-bit integers, which store counts


class StrictModel(BaseModel):
    """Options whose values must have the type of their field: `true` and '5' are no numbers, and `yes` is not true."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _check_kind(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = scalar_kinds(cls.model_fields[str(info.field_name)].annotation)
        for item in value if isinstance(value, list | tuple) else [value]:
            check_scalar(item, kinds)
        return value


def scalar_kinds(annotation: Any) -> frozenset[type]:
    """The types of scalars that a field takes: `float | None` takes float and None, `tuple[int, ...]` takes int."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return frozenset({annotation})
    if get_origin(annotation) is Literal:
        return frozenset(type(choice) for choice in get_args(annotation))
    if annotation is Any:
        return frozenset({object})
    return frozenset().union(*(scalar_kinds(part) for part in get_args(annotation) if part is not Ellipsis))


def check_scalar(value: Any, kinds: frozenset[type]) -> None:
    """Raise pydantic's error for a scalar of another type, where pydantic would convert the scalar."""
    if isinstance(value, str) and kinds & {str, Path, object}:
        check_text(value, is_path=Path in kinds)
    numeric = kinds & {int, float}
    if not kinds & {int, float, bool} or kinds & {str, object, Path}:
        return
    if isinstance(value, str) or (isinstance(value, bool) and bool not in kinds):
        raise PydanticKnownError("float_type" if float in kinds else "int_type" if numeric else "bool_type")
    if isinstance(value, int | float) and not isinstance(value, bool) and not numeric:
        raise PydanticKnownError("bool_type")
    if isinstance(value, float) and float not in kinds and value == value // 1 and abs(value) > EXACT:
        raise PydanticKnownError("int_type")  # several whole numbers have this float
    if isinstance(value, int) and abs(value) >= LIMIT:
        raise PydanticKnownError("less_than", {"lt": LIMIT}) if value > 0 else PydanticKnownError("greater_than", {"gt": -LIMIT})
    if isinstance(value, float) and value - value != 0:
        raise PydanticKnownError("finite_number")


def check_text(text: str, is_path: bool) -> None:
    """Raise an error for a text that is not UTF-8 or contains NUL, and for a path that cannot exist."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise PydanticKnownError("string_unicode") from None
    if b"\0" in data:
        raise PydanticCustomError("flora_hpc", "must not hold the character NUL")
    if is_path and (len(data) > MAX_PATH or max(map(len, data.split(b"/"))) > MAX_NAME):
        raise PydanticCustomError("flora_hpc", "is longer than a path can be")
    if is_path and os.path.expanduser(text).startswith("~"):  # noqa: PTH111 -- pathlib's raises for an unknown user
        raise PydanticCustomError("flora_hpc", "begins with ~, but the home folder is not known here; write the path from / on")
