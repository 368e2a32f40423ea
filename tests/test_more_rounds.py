"""A finished run that is given more rounds equals one that had them from the start."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flora_hpc.cli import app
from flora_hpc.records import hdf5file
from tests.conftest import ROOT, refusal
from tests.same_runs import adapter, assert_same

Invoke = Callable[..., str]


@pytest.fixture
def command(squares: Path) -> Callable[..., list[str]]:
    """A run of five clients with two images each."""

    def words(out: Path, rounds: int, *settings: str) -> list[str]:
        data = [f"data={{name: hdf5, path: {squares}}}", "partition={name: iid, num_clients: 5}", "client.group_size=2"]
        flags = [word for setting in (*data, f"rounds={rounds}", *settings) for word in ("-s", setting)]
        return ["run", str(ROOT / "configs" / "quickstart.yaml"), *flags, "--out", str(out)]

    return words


Command = Callable[..., list[str]]


def test_kept_optimizers_begin_after_round_0(command: Command, tmp_path: Path, invoke: Invoke) -> None:
    """Its checkpoint keeps none, for nobody has trained."""
    out, keep = tmp_path / "run", "client.optimizer_state=keep"
    invoke(*command(out, 0, keep))
    invoke(*command(out, 2, keep), "--resume")
    invoke(*command(tmp_path / "unbroken", 2, keep))
    assert_same(out, tmp_path / "unbroken")


def test_a_choice_that_decides_bits_is_not_made_anew(command: Command, tmp_path: Path, invoke: Invoke) -> None:
    out = tmp_path / "run"
    invoke(*command(out, 1, "client.first_step=jacobian"))
    told = refusal(*command(out, 2), "--resume")
    assert (
        "began with client.first_step: jacobian, and here it would be client.first_step: each, which decides bits; set it" in told
    )
    invoke(*command(out, 2, "client.first_step=jacobian"), "--resume")


@pytest.mark.parametrize(
    "settings",
    [["evaluate.every=3", "checkpoint.every=5"], ["evaluate.overlap=true"], ["client.optimizer_state=keep"]],
    ids=" ".join,
)
def test_it_equals_a_run_that_had_them_from_the_start(
    settings: list[str], command: Command, tmp_path: Path, invoke: Invoke
) -> None:
    out = tmp_path / "run"
    invoke(*command(out, 2, *settings))
    said = invoke(*command(out, 4, *settings), "--resume")
    assert "goes on: after round 2" in said
    invoke(*command(tmp_path / "unbroken", 4, *settings))
    assert_same(out, tmp_path / "unbroken")
    attributes, _ = hdf5file.read(out, ())
    assert (json.loads(attributes["extended_after"]), json.loads(attributes["resumed_after"])) == ([2], [2])
    assert "rounds: 4" in (out / "config.yaml").read_text()
    kept = {file.name[:12] for file in (out / "checkpoint").iterdir()}
    assert kept == {"round-000004"}, "one checkpoint is enough to go on from"


def test_the_servers_state_goes_on(command: Command, tmp_path: Path, invoke: Invoke) -> None:
    invoke(*command(tmp_path / "run", 1, "algorithm=fedavgm"))
    invoke(*command(tmp_path / "run", 3, "algorithm=fedavgm"), "--resume")
    invoke(*command(tmp_path / "unbroken", 3, "algorithm=fedavgm"))
    assert_same(tmp_path / "run", tmp_path / "unbroken")


@pytest.mark.mpi
def test_on_another_number_of_ranks(
    command: Command, tmp_path: Path, invoke: Invoke, flora: Callable[..., subprocess.CompletedProcess[str]], mpiexec: list[str]
) -> None:
    keep = "client.optimizer_state=keep"
    invoke(*command(tmp_path / "run", 1, keep))
    done = flora(*command(tmp_path / "run", 2, keep), "--resume", under=[*mpiexec, "-n", "2"])
    assert done.returncode == 0, done.stderr
    invoke(*command(tmp_path / "unbroken", 2, keep))
    assert_same(tmp_path / "run", tmp_path / "unbroken")


def test_fewer_rounds_than_are_played_are_refused(command: Command, tmp_path: Path, invoke: Invoke) -> None:
    out = tmp_path / "run"
    invoke(*command(out, 2))
    before = (out / "run.h5").read_bytes()
    assert refusal(*command(out, 1), "--resume") == (
        f"--resume: rounds: 1, but the run in {out} has played 2; give more rounds, or 2 as before"
    )
    assert "has finished already" in invoke(*command(out, 2), "--resume")
    assert (out / "run.h5").read_bytes() == before


@pytest.mark.parametrize("how", ["not kept", "removed", "damaged"])
def test_a_finished_run_without_a_checkpoint_keeps_what_it_has(how: str, command: Command, tmp_path: Path, invoke: Invoke) -> None:
    out, settings = tmp_path / "run", ["checkpoint.keep=false"] if how == "not kept" else []
    invoke(*command(out, 1, *settings))
    if how == "removed":
        shutil.rmtree(out / "checkpoint")
    elif how == "damaged":
        (out / "checkpoint" / "round-000001.safetensors").write_bytes(b"half")
    before = adapter(out), (out / "run.h5").read_bytes(), sorted(out.iterdir())
    sentence = refusal(*command(out, 2, *settings), "--resume")
    assert f"--resume: the finished run in {out} has no checkpoint to go on from: " in sentence
    assert "it is no checkpoint" in sentence or "it kept none" in sentence
    assert sentence.endswith("for more rounds start a new run with rounds: 2 and another --out")
    assert (adapter(out), (out / "run.h5").read_bytes(), sorted(out.iterdir())) == before


def test_until_it_ends_the_adapter_is_that_of_the_rounds_before(
    command: Command, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flora_hpc import loop

    def dies(*_: object) -> None:
        raise ZeroDivisionError

    out = tmp_path / "run"
    invoke(*command(out, 1))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "play", dies)
        with pytest.raises(ZeroDivisionError):
            CliRunner().invoke(app, [*command(out, 3), "--resume"], catch_exceptions=False)
    now = "(now failed, after round 1)"
    note = f"note: {out} has finished with 1 rounds and was given more {now}; its adapter is still that of round 1"
    for words in (["evaluate", str(out), "--json"], ["export", str(out), "--to", "open_clip", "--out", str(tmp_path / "whole")]):
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert (result.exit_code, result.stderr.strip()) == (0, note)
    assert "failed, round 1 of 3" in invoke("show", out)
    invoke(*command(out, 3), "--resume")
    assert "note:" not in CliRunner().invoke(app, ["evaluate", str(out)], catch_exceptions=False).stderr
