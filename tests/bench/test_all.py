import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flora_hpc.cli import _bench_all, app
from flora_hpc.cli import bench as group
from flora_hpc.errors import UserError


def test_every_bench_of_one_node_is_there() -> None:
    names = {command.name for command in group.app.registered_commands}
    assert set(_bench_all.SHORT) == names - {"all", "compare"}


def test_a_result_each_and_what_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "round.json").write_text("{}")
    done = CliRunner().invoke(app, ["bench", "all", "--out", str(tmp_path), "--only", "comm,round"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.exception
    assert json.loads((tmp_path / "comm.json").read_text())["bench"] == "comm"
    assert (tmp_path / "round.json").read_text() == "{}"
    assert "kept from before" in done.stdout


def test_a_bench_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_bench_all.SHORT, "comm", ("--sizes", "7"))
    done = CliRunner().invoke(app, ["bench", "all", "--out", str(tmp_path), "--only", "comm"], env={"COLUMNS": "200"})
    assert done.exit_code == 1
    assert "failed: comm" in done.stdout
    assert not (tmp_path / "comm.json").exists()


def test_mistakes(tmp_path: Path) -> None:
    error = CliRunner().invoke(app, ["bench", "all", "--out", str(tmp_path), "--only", "comm,x"]).exception
    assert isinstance(error, UserError)
    assert str(error).startswith("--only: there is no bench 'x' of one node; take some of step, methods, comm")
