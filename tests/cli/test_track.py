"""`flora-hpc run --track`: which trackers there are, and that they are told of a real run."""

import csv
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flora_hpc import extras
from flora_hpc.cli import app
from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file
from tests.conftest import ROOT

RUN = ["run", ROOT / "configs" / "quickstart.yaml", "-s", "rounds=2", "-s", "partition.num_clients=3", "-s", "client.group_size=3"]


def refusal(*arguments: object, **environment: str) -> str:
    result = CliRunner().invoke(app, [str(word) for word in arguments], env=environment)
    assert isinstance(result.exception, UserError)
    return str(result.exception)


def test_a_run_is_tracked_and_the_experiment_is_the_same(invoke: Callable[..., str], tmp_path: Path) -> None:
    invoke(*RUN, "--out", tmp_path / "plain")
    invoke(*RUN, "--out", tmp_path / "tracked", "--track", "csv")
    assert not (tmp_path / "plain" / "rounds.csv").exists()
    with (tmp_path / "tracked" / "rounds.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    rounds = hdf5file.read(tmp_path / "tracked")[1]["rounds"]
    assert tuple(lines[0]) == rounds.dtype.names
    assert len(lines) == len(rounds) == 3
    for line, row in zip(lines, rounds, strict=True):
        for name, value in line.items():
            assert float(value) == row[name] if value else math.isnan(row[name])
    for name in ("config.yaml", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "tracked" / name).read_bytes()


def test_what_cannot_be_tracked_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "installed", lambda package: False)
    monkeypatch.setattr("flora_hpc.loop.run", lambda *a: pytest.fail("the model would be loaded"))
    out = tmp_path / "run"
    assert "no tracker 'cvs'; did you mean 'csv'?" in refusal(*RUN, "--out", out, "--track", "csv", "--track", "cvs")
    missing = "--track tensorboard needs tensorboard, which is not installed: pip install 'flora-hpc[tensorboard]'"
    assert refusal(*RUN, "--out", out, "--track", "tensorboard") == missing
    assert refusal(*RUN, "--out", out, FLORA_HPC_TRACK="csv tensorboard") == missing
    assert not out.exists()
