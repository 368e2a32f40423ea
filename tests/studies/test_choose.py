"""The best setting for each method, and the study that plays these with other seeds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flora_hpc import configfile, yamltext
from flora_hpc.errors import UserError
from flora_hpc.records.study import Point, Study, open_study
from flora_hpc.studies import choose
from flora_hpc.studies.choose import Choice
from tests.studies import made_studies
from tests.studies.made_studies import point

METRIC = "final_test_accuracy"
RECIPE = """\
config: {rounds: 5, seed: 3, method: {name: flora, rank: 8}, data: {name: digits, validation_fraction: 0.2}}
study: {grid: {method.name: [flora, fedca], client.lr: [0.01, 0.1]}, seeds: [0, 1, 2]}
plugins: []
"""


def of(rows: list[Point]) -> Study:
    return Study(Path("sweep"), tuple(rows))


def chosen(choice: Choice) -> list[dict[str, Any]]:
    return [setting.keys for setting in choice.settings]


def test_each_method_has_its_best_learning_rate() -> None:
    study = of(made_studies.points())
    assert choose.grouping(study, None) == ["method.name"]
    choice = choose.best(study, METRIC, ["method.name"])
    assert chosen(choice) == [{"method.name": "flora", "client.lr": 0.01}, {"method.name": "fedca", "client.lr": 0.1}]


def test_by_other_keys_by_several_and_by_none() -> None:
    study = of(made_studies.points())
    best_of_rates = choose.best(study, METRIC, choose.grouping(study, "client.lr"))
    assert [keys["method.name"] for keys in chosen(best_of_rates)] == ["fedca", "fedca"]
    assert len(chosen(choose.best(study, METRIC, choose.grouping(study, "method.name, client.lr")))) == 4
    assert chosen(choose.best(study, METRIC, [])) == [{"method.name": "fedca", "client.lr": 0.1}]
    assert choose.grouping(study, "method, lr") == ["method.name", "client.lr"]  # short names, as in the names of run directories
    assert choose.grouping(of([point(0.5, {"client.lr": 0.1})]), None) == []


def test_the_mean_decides_not_the_best_seed() -> None:
    rows = [
        point(accuracy, {"a": a, "seed": seed})
        for a, two in ((1, (0.9, 0.1)), (2, (0.6, 0.6)))
        for seed, accuracy in enumerate(two)
    ]
    assert chosen(choose.best(of(rows), METRIC, [])) == [{"a": 2}]


def test_the_first_of_equal_settings_is_chosen() -> None:
    rows = [point(0.5, {"a": a, "seed": 0}) for a in (3, 1, 2)]
    assert chosen(choose.best(of(rows), METRIC, [])) == [{"a": 3}]


def test_validation_accuracy_is_the_default_where_it_was_measured() -> None:
    study = of(made_studies.points(final_validation_accuracy=0.5))
    assert choose.metric_of(study, None) == "final_validation_accuracy"
    assert choose.best(study, "final_validation_accuracy", []).notes == []


def test_test_accuracy_must_be_named_and_is_noted() -> None:
    study = of(made_studies.points())
    with pytest.raises(
        UserError, match=r"sweep: no point has a validation accuracy, .* data.validation_fraction: 0.1 .* --metric "
    ):
        choose.metric_of(study, None)
    for name in ("test_accuracy", "personal_accuracy", "chosen_test_accuracy"):
        metric = choose.metric_of(study, name)
        rows = of(made_studies.points(final_personal_accuracy=0.5, chosen_test_accuracy=0.5))
        assert "chosen on test images" in choose.best(rows, metric, []).notes[-1]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("uplink_bytes", "--metric uplink_bytes: is no accuracy"),
        ("validation_accurcy", "did you mean 'validation_accuracy'?"),
    ],
)
def test_only_an_accuracy_can_be_chosen_by(name: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        choose.metric_of(of(made_studies.points()), name)
    assert sentence in str(error.value)


def test_points_that_did_not_finish_have_no_part() -> None:
    rows = [point(0.5, {"a": 1, "seed": 0}), point(0.5, {"a": 1, "seed": 1}), point(0.6, {"a": 2, "seed": 0})]
    rows += [point(0.99, {"a": 3, "seed": seed}, status=status) for seed, status in enumerate(("failed", "running"))]
    choice = choose.best(of(rows), METRIC, [])
    assert chosen(choice) == [{"a": 2}]
    assert choice.notes[:2] == [
        "2 points did not finish, and had no part in the choice",
        "means are over 1 to 2 seeds; those of few seeds are less certain",
    ]
    assert "no finished point of a=3 has final_test_accuracy" in choose.best(of(rows), METRIC, ["a"]).notes


def test_a_study_without_results_is_told() -> None:
    waiting = of([Point("a", {"a": 1}), Point("b", {"a": 2}, "failed", "why")])
    with pytest.raises(UserError, match="sweep: no point has finished"):
        choose.metric_of(waiting, None)
    with pytest.raises(UserError, match="sweep: no finished point has final_personal_accuracy"):
        choose.best(of(made_studies.points()), "final_personal_accuracy", [])


def test_an_unknown_key_is_told() -> None:
    with pytest.raises(UserError, match=r"--by client.l: does not differ .*did you mean 'client.lr'\? \(method.name, client.lr\)"):
        choose.grouping(of(made_studies.points()), "client.l")


# --- other seeds


@pytest.mark.parametrize(
    ("seeds", "config", "expected"),
    [
        ([0, 1, 2], {}, [3, 4]),
        ([7, 3], {}, [8, 9]),
        ([], {"seed": 5}, [6, 7]),
        ([], {}, [1, 2]),
        ([2**63 - 1, 1], {}, [0, 2]),
    ],
)
def test_other_seeds_are_none_of_the_study(seeds: list[int], config: dict[str, Any], expected: list[int]) -> None:
    rows = [point(0.5, {"a": 1, "seed": seed}) for seed in seeds] or [point(0.5, {"a": 1})]
    assert choose.other_seeds(of(rows), config, 2) == expected


def test_the_next_study_is_the_configuration_with_the_chosen_points(tmp_path: Path) -> None:
    folder = made_studies.write(tmp_path / "sweep", made_studies.points(final_validation_accuracy=0.5))
    (folder / "study.yaml").write_text(RECIPE)
    study = open_study(folder)
    config = choose.recipe(study)["config"]
    choice = choose.best(study, METRIC, ["method.name"])
    choose.write(tmp_path / "next.yaml", choose.next_study(config, choice, choose.other_seeds(study, config, 3), str(folder)))
    tree = yamltext.parse(yamltext.read(tmp_path / "next.yaml"))
    section = tree.pop("study")
    assert section == {"points": chosen(choice), "seeds": [3, 4, 5]}
    assert tree == config
    first, second = (configfile.load_values(tree, keys)[0] for keys in section["points"])
    assert (first.method.name, first.client.lr, first.rounds) == ("flora", 0.01, 5)
    assert (second.method.name, second.client.lr) == ("fedca", 0.1)


def test_a_study_of_seeds_alone_has_no_list_of_points() -> None:
    choice = choose.best(of([point(0.5, {"seed": seed}) for seed in (0, 1)]), METRIC, [])
    tree = yamltext.parse(choose.next_study({"rounds": 5}, choice, [2, 3], "a\nb"))
    assert tree == {"rounds": 5, "study": {"seeds": [2, 3]}}


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "next.yaml"
    choose.write(file, "a: 1\n")
    with pytest.raises(UserError, match=f"-o {file}: is there already; choose another name"):
        choose.write(file, "a: 2\n")
    assert file.read_text() == "a: 1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["next.yaml"]
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\); choose another place"):
        choose.write(tmp_path / "nowhere/next.yaml", "a: 1\n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "study.yaml: cannot be read (No such file or directory); --then needs the directory of a study"),
        ("a: [", "study.yaml: is not valid YAML (line 1: "),
        ("a: 1", "study.yaml: has no section config"),
        ("- 1", "study.yaml: has no section config"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_told(text: str | None, sentence: str, tmp_path: Path) -> None:
    study = replace(of(made_studies.points()), path=tmp_path)
    if text is not None:
        (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        choose.recipe(study)
    assert sentence in str(error.value)
