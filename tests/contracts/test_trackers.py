"""What every tracker promises, read back with its own package; one whose package is not installed is skipped."""

import csv
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flora_hpc import extras, plugins
from flora_hpc.observers import _tracker
from flora_hpc.records.known import Earlier, RoundRecord
from tests.contracts import wandb_file
from tests.contracts.known_helpers import round_record, run_info

ROUNDS = [round_record(0, accuracy=0.25), round_record(1), round_record(2, accuracy=0.75, num_rejected=1), round_record(3)]


@dataclass
class Kept:
    """What a tracker holds of a run; `parameters` and `status` are None where it has no place for them."""

    rounds: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    parameters: dict[str, Any] | None = None
    status: str | None = None


def read_csv(folder: Path) -> Kept:
    names = {"accuracy/test": "test_accuracy", "seconds/train": "train_seconds", "bytes/uplink": "uplink_bytes"}
    with (folder / "rounds.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    return Kept(
        {name: [(int(line["round"]), float(line[column])) for line in lines if line[column]] for name, column in names.items()}
    )


def read_tensorboard(folder: Path) -> Kept:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "tensors": 0})
    events.Reload()
    rounds = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    found = plugin_data_pb2.HParamsPluginData.FromString(
        events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    )
    parameters = {key: getattr(value, value.WhichOneof("kind")) for key, value in found.session_start_info.hparams.items()}
    statuses = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("status/text_summary")]
    return Kept(rounds, parameters, statuses[-1])


def read_mlflow(folder: Path) -> Kept:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(folder / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("flora_hpc")
    (run,) = client.search_runs([experiment.experiment_id])
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    assert run.info.status == {"finished": "FINISHED", "failed": "FAILED"}.get(run.data.tags["status"], "KILLED")
    rounds = {name: [(metric.step, metric.value) for metric in history] for name, history in histories.items()}
    return Kept(rounds, run.data.params, run.data.tags["status"])


def read_wandb(folder: Path) -> Kept:
    """Of all folders that `wandb sync` would take."""
    import wandb

    wandb.teardown()  # a process of its own writes the file; as at a program's end, this waits for it
    kept, ids = Kept(parameters={}), set()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for message in wandb_file.messages(path):
            if message.HasField("run"):
                ids.add(message.run.run_id)
                kept.parameters = wandb_file.pairs(message.run.config.update)
            if message.HasField("history"):
                for name, value in wandb_file.pairs(message.history.item).items():
                    kept.rounds.setdefault(name, []).append((message.history.step.num, value))
            if message.HasField("summary"):
                kept.status = wandb_file.pairs(message.summary.update).get("status", kept.status)
    assert len(ids) == 1
    return kept


READERS = {"csv": read_csv, "tensorboard": read_tensorboard, "mlflow": read_mlflow, "wandb": read_wandb}


@pytest.fixture(params=_tracker.names())
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    package = plugins.member("observers", request.param).PACKAGE
    if package and not extras.installed(package):
        pytest.skip(f"no {package}")
    for variable in [key for key in os.environ if key.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(variable)
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Brackets, spaces and percent signs mean something to some."""
    folder = tmp_path / "sweep[lr] 50%"
    folder.mkdir()
    return folder


def play(name: str, folder: Path, records: list[RoundRecord], status: str = "finished", earlier: Earlier | None = None) -> None:
    observer = plugins.member("observers", name).build(folder)
    observer.started(run_info(earlier=earlier))
    for record in records:
        observer.round(record)
    observer.ended(status)


def before(records: list[RoundRecord]) -> Earlier:
    tables = (np.concatenate([getattr(record, part) for record in records]) for part in ("row", "ranks", "clients"))
    return Earlier(*tables, resumed_after=[len(records) - 1])


def assert_all_rounds_once(kept: Kept) -> None:
    assert kept.rounds["accuracy/test"] == [(0, 0.25), (2, 0.75)], "what was not measured is left out"
    assert kept.rounds["seconds/train"] == [(number, 0.375) for number in range(4)]
    assert kept.rounds["bytes/uplink"] == [(0, 0), (1, 300), (2, 300), (3, 300)]


@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_it_keeps_what_was_run_every_round_and_how_it_ended(
    name: str, status: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play(name, folder, ROUNDS, status)
    assert capsys.readouterr() == ("", "")
    kept = READERS[name](folder)
    assert_all_rounds_once(kept)
    if kept.parameters is not None:
        assert float(kept.parameters["seed"]) == 7
        assert kept.parameters["method.name"] == "flora"
        assert float(kept.parameters["run.world_size"]) == 2
        assert kept.status == status


def test_a_run_that_goes_on_is_the_same_run_with_no_round_twice(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Round 2 was told, but is not in the log up to the checkpoint: it is played again."""
    play(name, folder, ROUNDS[:3], "stopped")
    play(name, folder, ROUNDS[2:], earlier=before(ROUNDS[:2]))
    kept = READERS[name](folder)
    assert_all_rounds_once(kept)
    assert kept.status in ("finished", None)
    assert capsys.readouterr() == ("", "")


def test_one_that_joins_a_run_that_goes_on_learns_of_all_rounds(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play(name, folder, ROUNDS[2:], earlier=before(ROUNDS[:2]))
    assert_all_rounds_once(READERS[name](folder))
    assert capsys.readouterr() == ("", "")


def test_a_run_may_end_before_its_first_round(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play(name, folder, [], "failed")
    assert capsys.readouterr() == ("", "")


def test_a_folder_that_cannot_be_written_is_a_warning(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file is where its folder should be."""
    (tmp_path / "file").touch()
    play(name, tmp_path / "file", ROUNDS)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {name} is left out from here on (")


@pytest.mark.parametrize("member", _tracker.names())
def test_it_says_what_it_does_and_what_it_needs(member: str) -> None:
    module = plugins.member("observers", member)
    first = (module.__doc__ or "").splitlines()[0]
    assert first.startswith("Tracker: ")
    assert (f"flora-hpc[{member}]" in first) == (module.PACKAGE is not None)


def test_runs_without_trackers_import_none_of_their_packages() -> None:
    """Each takes a second or more. Their files alone may be imported, to check names and to list them."""
    program = """
import sys
from flora_hpc import extras, plugins
from flora_hpc.observers import _tracker

packages = [plugins.member("observers", name).PACKAGE for name in _tracker.names()]
print(sorted({*packages, "torch"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stdout == "[]\n", result.stderr
