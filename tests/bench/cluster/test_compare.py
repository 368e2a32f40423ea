import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flora_hpc.bench.cluster import compare
from flora_hpc.cli import app
from flora_hpc.errors import UserError
from tests.bench.cluster.whole import whole


def test_ratios_with_intervals() -> None:
    """12 clients in 2 s, and in 1.5 s: 4/3 as fast; rounds of one length leave no doubt."""
    result = compare.compare([("a", whole()), ("b", whole((1.5, 1.5, 1.5)))])
    first, second = result["results"]
    assert first["ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert not first["differs"]
    assert second["ratio"] == pytest.approx({"value": 4 / 3, "low": 4 / 3, "high": 4 / 3})
    assert second["differs"]
    assert second["phase_ratios"]["train"] == 0.75
    assert result["unlike"] == {}


def test_rounds_that_differ_widely_show_no_difference() -> None:
    other = compare.compare([("a", whole((1.0, 2.0, 3.0))), ("b", whole((1.0, 2.1, 3.0)))])["results"][1]
    assert other["ratio"]["low"] < 1 < other["ratio"]["high"]
    assert not other["differs"]


def test_what_differs_between_machines_is_told() -> None:
    other = whole()
    other["settings"] = {"OMP_NUM_THREADS": "8"}
    other["host"] = "elsewhere"
    assert compare.compare([("a", whole()), ("b", other)])["unlike"] == {"OMP_NUM_THREADS": ["4", "8"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "S"}, "b: is another benchmark than a: class S, not T"),
        ({"version": 2}, "version 2, not 1"),
        ({"digest": "other"}, "work other, not "),
        ({"scaling": "weak"}, "scaling weak, not strong"),
        ({"fraction": 0.5}, "share of the class 0.5, not 1.0"),
    ],
)
def test_unlike_classes_are_refused(change: dict[str, object], said: str) -> None:
    other = whole()
    other["class"] |= change
    with pytest.raises(UserError, match=said):
        compare.compare([("a", whole()), ("b", other)])


def test_invalid_and_lone_results_are_refused() -> None:
    with pytest.raises(UserError, match=r"b: is INVALID \(rank 1\)"):
        compare.compare([("a", whole()), ("b", whole() | {"valid": False, "culprit": "rank 1"})])
    with pytest.raises(UserError, match="give two results at least"):
        compare.compare([("a", whole())])


def test_the_table_for_people(tmp_path: Path) -> None:
    for name, seconds in {"a": (2.0, 2.0), "b": (4.0, 4.0)}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(whole(seconds)))
    words = ["bench", "compare", str(tmp_path / "a"), str(tmp_path / "b" / "result.json")]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.exception
    assert "slower, 0.500 times the first; train takes 2.00 times as long" in done.stdout
    printed = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert (printed["bench"], printed["results"][1]["ratio"]["value"]) == ("compare", 0.5)
