"""`flora-hpc study best`: the best settings, as options to type and as the next study."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flora_hpc import configtree, yamltext
from flora_hpc.cli._study_best import overrides
from tests.conftest import refusal
from tests.studies import made_studies
from tests.studies.made_studies import point

Invoke = Callable[..., str]
RECIPE = "config: {rounds: 5, method: {name: flora}}\nstudy: {}\nplugins: [my part.py]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Test accuracy is highest for fedca with 0.1, validation accuracy for fedca with 0.01."""
    rows = made_studies.points()
    for number, row in enumerate(rows):
        validation = 0.9 if row.setting == {"method.name": "fedca", "client.lr": 0.01} else 0.5 + 0.001 * number
        rows[number] = replace(row, final_validation_accuracy=validation)
    made_studies.write(tmp_path / "sweep", rows)
    (tmp_path / "sweep/study.yaml").write_text(RECIPE)
    return tmp_path / "sweep"


def test_the_best_of_each_method_by_validation_accuracy(folder: Path, invoke: Invoke) -> None:
    text = invoke("study", "best", folder)
    assert "validation accuracy" in text.splitlines()[0]
    assert text.splitlines()[-2:] == [
        "to use it: -s method.name=flora -s client.lr=0.1",
        "to use it: -s method.name=fedca -s client.lr=0.01",
    ]
    assert "note:" not in text
    assert "client.lr=0.01" in invoke("study", "best", folder, "--by", "client.lr")


def test_by_test_accuracy_with_a_note(folder: Path, invoke: Invoke) -> None:
    text = invoke("study", "best", folder, "--metric", "test_accuracy")
    assert "-s method.name=fedca -s client.lr=0.1\n" in text
    assert "note: chosen on test images: the test accuracies of these settings look better than they are" in text


def test_then_writes_the_study_of_the_best_with_other_seeds(folder: Path, invoke: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "next.yaml"
    lines = invoke("study", "best", folder, "--then", 4, "-o", file).splitlines()
    assert yamltext.parse(file.read_text()) == {
        "rounds": 5,
        "method": {"name": "flora"},
        "study": {
            "points": [{"method.name": "flora", "client.lr": 0.1}, {"method.name": "fedca", "client.lr": 0.01}],
            "seeds": [3, 4, 5, 6],
        },
    }
    assert lines[-2] == f"{file}: 2 settings with seeds 3, 4, 5, 6"
    command = shlex.split(lines[-1].removeprefix("play them: "))
    assert command == ["flora-hpc", "study", str(file), "--plugin", "my part.py", "--out", f"{folder}-then"]
    assert "is there already" in refusal("study", "best", folder, "--then", 4, "-o", file)


def test_json(folder: Path, invoke: Invoke) -> None:
    shown = json.loads(invoke("study", "best", folder, "--json"))
    assert (shown["metric"], shown["by"], shown["notes"]) == ("final_validation_accuracy", ["method.name"], [])
    assert shown["best"][1]["keys"] == {"method.name": "fedca", "client.lr": 0.01}
    assert shown["best"][1]["final_test_accuracy"]["mean"] == pytest.approx(0.62)


def test_a_study_without_keys_is_the_configuration_as_it_is(tmp_path: Path, invoke: Invoke) -> None:
    folder = made_studies.write(tmp_path, [point(0.5, {"seed": seed}) for seed in (0, 1)])
    assert "to use it: the configuration as it is" in invoke("study", "best", folder, "--metric", "test_accuracy")


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    assert refusal("study", "best", folder, "--then", 3).startswith("--then N -o FILE.yaml: belong together")
    assert refusal("study", "best", folder, "-o", tmp_path / "x.yaml").startswith("--then N -o FILE.yaml: belong together")
    assert "did you mean 'method.name'?" in refusal("study", "best", folder, "--by", "method.nam")
    other = made_studies.write(tmp_path / "other", made_studies.points())
    assert "looks better than it is" in refusal("study", "best", other)


@pytest.mark.parametrize("value", [None, True, "a, b", "it's {}", "{}, a pet", ["a b", None], {"name": "x"}, 1e-5, "10", "ä$HOME`"])
def test_options_can_be_typed_in_a_shell(value: Any) -> None:
    option, text = shlex.split(overrides({"a.b": value}))
    assert option == "-s"
    assert configtree.split_override(text) == ("a.b", value)
