"""The whole benchmark on two ranks, small: a valid result, and a flipped bit that is told."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flora_hpc.bench import quiet
from flora_hpc.bench.cluster import classes, measure, result
from flora_hpc.bench.cluster.flip import VARIABLE
from flora_hpc.cli import _bench_cluster, app
from flora_hpc.config import Config
from flora_hpc.errors import UserError
from flora_hpc.records.opened import open_run
from flora_hpc.report import cluster_page
from tests import forks
from tests.bench.cluster.known import one_node
from tests.conftest import ROOT, refusal

Flora = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ["bench", "cluster", "--class", "T", "--fraction", "0.008"]  # eight clients
BUSY_LOAD = 3.0 * (os.cpu_count() or 1)


def first_failure(text: dict[str, Any]) -> str:
    return next(check["name"] for check in text["checks"] if not check["passed"])


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of one process on a busy machine; what was printed lies beside its directory."""
    out = tmp_path_factory.mktemp("cluster") / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quiet, "load", lambda: BUSY_LOAD)
        done = CliRunner().invoke(app, [*SMALL, "--out", str(out)], env={"COLUMNS": "80"})
    (out.parent / "terminal.txt").write_text(done.stdout)
    assert done.exit_code == 0, done.output
    assert "VALID" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    return out


def test_the_result_of_one_process(valid: Path) -> None:
    whole = result.read(valid)
    assert {path.name for path in valid.iterdir()} == {"result.json", "run.h5", "config.yaml", "cluster.html"}
    assert whole["valid"]
    assert whole["checks"][0]["text"] == whole["checks"][2]["text"] == "one rank: nothing to compare"
    assert "one rank: nothing to compare" in whole["warnings"]
    assert (whole["class"]["name"], whole["class"]["fraction"], whole["unit"]) == ("T", 0.008, "rank")
    rounds = open_run(valid).tables["rounds"]
    assert len(rounds) == 1 + classes.WARM + 5
    assert whole["curve"][0]["repeat_round_seconds"] == [rounds["round_seconds"][1 + classes.WARM :].tolist()]
    assert whole["number"]["value"] == pytest.approx(8 / whole["curve"][0]["round_seconds"]["median"])
    assert whole["phases"]["train"]["median"] > 0


def test_a_busy_machine_is_told_in_the_result_the_page_and_the_terminal(valid: Path) -> None:
    """The load of the fixture is 3 a core."""
    whole = result.read(valid)
    (node,) = whole["topology"]["nodes"]
    assert (node["cores"], node["load"]) == (os.cpu_count(), BUSY_LOAD)
    assert any(sentence.startswith(f"load before the start: {BUSY_LOAD:.1f} on ") for sentence in whole["warnings"])
    page, text = (valid / "cluster.html").read_text(), " ".join((valid.parent / "terminal.txt").read_text().split())
    for sentence in whole["warnings"]:
        assert sentence in page
        assert sentence in text


def test_a_directory_with_a_result_is_refused(valid: Path) -> None:
    error = CliRunner().invoke(app, [*SMALL, "--out", str(valid)]).exception
    assert isinstance(error, UserError)
    assert str(error).endswith("already holds result.json; choose another directory, or remove this one")


@pytest.mark.mpi
def test_two_ranks_under_mpiexec_have_the_digests_of_one(flora: Flora, mpiexec: list[str], valid: Path, tmp_path: Path) -> None:
    done = flora(*SMALL, "--out", str(tmp_path / "two"), "--fom", under=[*mpiexec, "-n", "2"])
    assert done.returncode == 0, done.stderr
    two, one = result.read(tmp_path / "two"), result.read(valid)
    assert [row["units"] for row in two["curve"]] == [1, 2]
    assert two["digests"]["rounds"]["2"] == one["digests"]["rounds"]["1"]
    assert two["class"]["digest"] == one["class"]["digest"]
    assert "FOM valid = VALID -" in done.stdout.splitlines()
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FOM client_updates_per_second = "))
    assert float(line.split()[3]) == pytest.approx(two["number"]["value"], rel=1e-5)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("flip", "check", "named"),
    [
        ("1", "each rank alone", "rank 1 on "),
        ("1:received:2", "ranks agree", "another adapter than the other ranks, in round 1 on 2 ranks"),
    ],
)
def test_a_flipped_bit_is_told(flip: str, check: str, named: str, flora: Flora, mpiexec: list[str], tmp_path: Path) -> None:
    out = tmp_path / "two"
    done = flora(*SMALL, "--out", str(out), under=["env", f"{VARIABLE}={flip}", *mpiexec, "-n", "2"])
    assert done.returncode == 1, done.stderr
    whole = json.loads((out / "result.json").read_text())
    assert not whole["valid"]
    assert first_failure(whole) == check
    assert named in whole["culprit"]
    assert "INVALID" in done.stdout
    assert (whole["number"], whole["curve"]) == (None, [])


@pytest.mark.mpi
def test_a_mistake_in_one_part_ends_the_other_parts(python: list[str], mpiexec: list[str], tmp_path: Path) -> None:
    script = ROOT / "tests" / "bench" / "cluster" / "lone_mistake.py"
    command = [*mpiexec, "-n", "2", *python, script, *SMALL, "--out", tmp_path / "two"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert "rank 1 of 2 on " in done.stderr
    assert "a file is missing here" in done.stderr
    assert not (tmp_path / "two" / "result.json").exists()


@pytest.mark.long
def test_under_torchrun(tmp_path: Path) -> None:
    command = [*forks.torchrun(2), "-m", "flora_hpc", *SMALL, "--weak", "--out", str(tmp_path / "two"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    whole = json.loads(done.stdout.splitlines()[-1])
    assert (whole["bench"], whole["valid"], whole["class"]["scaling"]) == ("cluster", True, "weak")
    assert [row["clients"] for row in whole["curve"]] == [4, 8]


def test_too_little_memory_is_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    units = one_node(2)
    work = classes.Work(classes.find("T"))
    measure.refuse_little_memory(work, units, [1, 2], on_gpu=False)
    monkeypatch.setattr(measure.forecast, "plan", lambda *rest: type("Plan", (), {"memory_bytes": {"weights": 33 * 10**9}}))
    with pytest.raises(UserError, match=r"class T: a rank needs about 33.0 GB of memory with 2 on a node, but has 32.0 GB; start"):
        measure.refuse_little_memory(work, units, [1, 2], on_gpu=False)


@pytest.mark.parametrize(("share", "limit"), [("2", "most 1, not 2"), ("0", "least 1e-06, not 0"), ("nan", "least 1e-06, not nan")])
def test_a_share_out_of_range_is_refused(share: str, limit: str) -> None:
    error = CliRunner().invoke(app, ["bench", "cluster", "--class", "T", "--fraction", share]).exception
    assert isinstance(error, UserError)
    assert str(error) == f"--fraction: must be at {limit}"


def test_weak_scaling_needs_memory_for_its_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(config: Config, num_ranks: int) -> Any:
        return type("Plan", (), {"memory_bytes": {"clients": config.cohort.size * 20 * 10**6, "ranks": num_ranks}})

    monkeypatch.setattr(measure.forecast, "plan", plan)
    weak = classes.Work(classes.find("T"), weak=True)
    measure.refuse_little_memory(weak, one_node(2), [1], on_gpu=False)
    with pytest.raises(UserError, match=r"class T: a rank needs about 40.0 GB"):
        measure.refuse_little_memory(weak, one_node(2), [1, 4], on_gpu=False)


def test_a_page_that_cannot_be_made_does_not_end_a_measurement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []
    monkeypatch.setattr(cluster_page, "make", lambda result: 1 / 0)
    _bench_cluster.write_page(tmp_path, {}, said.append)
    assert said == ["no page: ZeroDivisionError: division by zero"]
    assert not list(tmp_path.iterdir())


def test_a_wrong_flip_is_refused_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "x")
    monkeypatch.setattr(measure, "set_up", lambda *words: pytest.fail("a model was made"))
    assert f"{VARIABLE} is 'x'" in refusal(*SMALL, "--out", tmp_path / "one")


def test_unknown_classes_are_refused_before_anything_starts() -> None:
    error = CliRunner().invoke(app, ["bench", "cluster", "--class", "huge"]).exception
    assert isinstance(error, UserError)
    assert "--class huge: there is no such class" in str(error)
