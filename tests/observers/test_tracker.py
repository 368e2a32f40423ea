from pathlib import Path

import pytest

from flora_hpc import extras, plugins
from flora_hpc.errors import UserError
from flora_hpc.observers import _tracker, _trackerthread
from flora_hpc.observers._tracker import RunIdFile
from tests.contracts.known_helpers import round_record, run_info


def refusal(*wanted: str) -> str:
    with pytest.raises(UserError) as error:
        _tracker.check(wanted)
    return str(error.value)


def test_numbers_are_grouped_and_what_was_not_measured_is_left_out() -> None:
    found = _tracker.numbers(round_record(1).row)
    assert {name.partition("/")[0] for name in found} == {"seconds", "bytes", "loss", "num"}
    assert (found["seconds/train"], found["bytes/uplink"], found["loss/train"], found["num/clients"]) == (0.375, 300, 1.25, 3)
    measured = _tracker.numbers(round_record(0, accuracy=0.25).row)
    assert measured["accuracy/test"] == 0.25
    assert "loss/train" not in measured


def test_parameters_are_flat() -> None:
    found = _tracker.parameters(run_info())
    assert (found["seed"], found["data.name"], found["cohort.fraction"]) == (7, "digits", None)
    assert (found["run.backend"], found["versions.numpy"]) == ("mpi", "2.0.0")


def test_a_name_that_is_no_tracker_is_answered_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal("mlfow") == "--track: no tracker 'mlfow'; did you mean 'mlflow'? (csv, mlflow, tensorboard, wandb)"
    assert refusal("csv", "hdf5").startswith("--track: no tracker 'hdf5'"), "an observer, but one that every run has"


def test_a_missing_package_is_answered_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "installed", lambda package: package != "mlflow")
    _tracker.check(["csv", "wandb"])
    assert refusal("csv", "mlflow") == "--track mlflow needs mlflow, which is not installed: pip install 'flora-hpc[mlflow]'"


def test_a_folder_that_a_tracker_left_is_not_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no_such_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not extras.installed("no_such_tracker")
    assert not extras.installed("nowhere_at_all")
    assert extras.installed("numpy")


def test_one_that_is_named_twice_is_told_once(tmp_path: Path) -> None:
    built = [tracker_thread._name for tracker_thread in _trackerthread.build(["csv", "wandb", "csv"], tmp_path)._threads]
    assert built == ["csv", "wandb"]


def test_an_extra_installs_each_package() -> None:
    import tomllib

    from tests.conftest import ROOT

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in _tracker.names():
        if plugins.member("observers", name).PACKAGE:
            assert name in extras


def test_a_bookmark_is_of_one_place(tmp_path: Path) -> None:
    path = tmp_path / "wandb.json"
    assert RunIdFile(path, "here").read() == {}
    RunIdFile(path, "here").write(run="a1")
    assert RunIdFile(path, "here").read() == {"where": "here", "run": "a1"}
    assert RunIdFile(path, "elsewhere").read() == {}
    path.write_text("{")
    assert RunIdFile(path, "here").read() == {}
