"""point.json and study.h5: what is written is read again, and other programs can read it."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import NoReturn

import pytest

from flora_hpc.records import study
from flora_hpc.records.study import Point, open_study

PLAYED = Point("a", {"method.name": "flora", "seed": 3}, "finished", "", 5, 0.75, 0.8, 4, uplink_bytes=1200, round_seconds=1.5)


def not_json(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


def test_point_json_is_json_and_null_is_read_as_nan(tmp_path: Path) -> None:
    study.write_index(tmp_path, [Point("a", PLAYED.keys)])
    study.write_row(tmp_path, PLAYED)
    values = json.loads((tmp_path / "points/a/point.json").read_text(), parse_constant=not_json)
    assert (values["final_test_accuracy"], values["final_validation_accuracy"]) == (0.75, None)
    (point,) = open_study(tmp_path).rows
    assert math.isnan(point.final_validation_accuracy)
    for field in fields(Point):
        value, written = getattr(point, field.name), getattr(PLAYED, field.name)
        assert type(value) is type(written)
        assert value == written or math.isnan(written)


def test_infinity_in_a_key_is_null_in_json_and_itself_in_the_index(tmp_path: Path) -> None:
    point = Point("a", {"client.clip": [math.inf, 1.0]})
    study.write_index(tmp_path, [point])
    study.write_row(tmp_path, point)
    values = json.loads((tmp_path / "points/a/point.json").read_text(), parse_constant=not_json)
    assert values["keys"] == {"client.clip": [None, 1.0]}
    assert open_study(tmp_path).rows[0].keys == point.keys


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '{"final_test_accuracy": "much"}', '{"num_rounds": null}', '{"num_rounds": [1]}', "\xff"]
)
def test_a_damaged_point_json_is_a_failed_point(text: str, tmp_path: Path) -> None:
    study.write_index(tmp_path, [PLAYED, replace(PLAYED, name="b")])
    study.write_row(tmp_path, PLAYED)
    (tmp_path / "points/a/point.json").write_bytes(text.encode("latin-1"))
    one, other = open_study(tmp_path).rows
    assert (one.status, other.status) == ("failed", "waiting")
    assert "points/a/point.json: cannot be read" in one.message
    assert "--resume plays this point again" in one.message
