import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flora_hpc.cli import _bench_all, app
from flora_hpc.cli import bench as group
from flora_hpc.errors import UserError


def test_every_bench_of_one_node_is_there() -> None:
    names = {command.name for command in group.app.registered_commands}
    assert set(_bench_all.SHORT) == names - {"all", "compare", "predict"}, "and predict takes ten minutes"


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


def test_an_invalid_cluster_result_is_replaced_by_the_next_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [1, 0]

    def bench(command: list[str], **more: object) -> subprocess.CompletedProcess[str]:
        folder = Path(command[command.index("--out") + 1])
        folder.mkdir()  # which is not there, also at the second try
        (folder / "result.json").write_text(f"{codes}")
        return subprocess.CompletedProcess(command, codes.pop(0), "{}")

    monkeypatch.setattr(_bench_all.subprocess, "run", bench)
    words = ["bench", "all", "--out", str(tmp_path), "--only", "cluster"]
    assert CliRunner().invoke(app, words).exit_code == 1
    assert {path.name for path in tmp_path.iterdir()} == {"cluster.try"}
    assert CliRunner().invoke(app, words).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"cluster", "cluster.json"}
    assert (tmp_path / "cluster" / "result.json").read_text() == "[0]"
    assert "kept from before" in CliRunner().invoke(app, words, env={"COLUMNS": "200"}).stdout


def test_a_directory_that_may_be_another_run_stays(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    error = CliRunner().invoke(app, ["bench", "all", "--out", str(tmp_path), "--only", "cluster"]).exception
    assert isinstance(error, UserError)
    assert str(error).endswith("cluster: is there, but cluster.json is not; choose another --out, or move this directory away")


def test_mistakes(tmp_path: Path) -> None:
    error = CliRunner().invoke(app, ["bench", "all", "--out", str(tmp_path), "--only", "comm,x"]).exception
    assert isinstance(error, UserError)
    assert str(error).startswith("--only: there is no bench 'x' of one node; take some of step, methods, comm")
