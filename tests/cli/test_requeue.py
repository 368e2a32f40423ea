"""A job that Slurm starts again and again without a new round ends."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from flora_hpc import experiment, loop
from flora_hpc.owner import claim, living
from tests.cli.test_bad_input import call
from tests.conftest import ROOT

Start = Callable[..., tuple[object, str]]
ENDS = "two starts of this Slurm job in a row saved no new round, so it is not queued again"


@pytest.fixture
def start(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Start:
    """Start the job for the n-th time: its exit code and what it said. `signal_at` is the round in which USR1 comes, if any."""

    def command(restarts: int, signal_at: int | None = None, rounds: int = 3) -> tuple[object, str]:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        play = loop.play

        def signalled(setup, site, state, number):  # type: ignore[no-untyped-def]
            if number == signal_at:
                os.kill(os.getpid(), signal.SIGUSR1)
            return play(setup, site, state, number)

        data = [f"data={{name: hdf5, path: {squares}}}", "partition={name: iid, num_clients: 2}", f"rounds={rounds}"]
        flags = [word for setting in data for word in ("-s", setting)]
        with monkeypatch.context() as patch:
            patch.setattr(loop, "play", signalled)
            if signal_at == -1:  # while the model is loaded
                build = experiment.build
                patch.setattr(experiment, "build", lambda *args: (os.kill(os.getpid(), signal.SIGUSR1), build(*args))[1])
            return call(["run", str(ROOT / "configs/quickstart.yaml"), *flags, "--out", str(out), "--resume"], monkeypatch, capsys)

    out = tmp_path / "run"
    return command


def test_a_start_that_saves_a_round_begins_the_count_again(start: Start) -> None:
    assert start(0, signal_at=-1)[0] == 75
    assert start(1, signal_at=1)[0] == 75, "round 1 is saved"
    assert start(2, signal_at=-1)[0] == 75
    code, error = start(3, signal_at=-1)
    assert (code, ENDS in error) == (2, True)
    assert start(4)[0] == 2, "it is not started again by itself"


def test_a_user_who_submits_again_begins_the_count_again(start: Start) -> None:
    assert [start(restarts, signal_at=-1)[0] for restarts in (0, 1)] == [75, 2]
    assert start(0)[0] == 0


def test_starts_that_are_killed_before_they_can_say_anything(start: Start, tmp_path: Path) -> None:
    """As by a time limit that is shorter than the imports: each one left its owner file alone."""
    out = tmp_path / "run"
    out.mkdir()
    for number, idle in ((1, 0), (2, 1)):
        owner = replace(living.this_process(), started="1", job="7", restarts=number - 1, idle=idle)
        claim.path(out, number).write_text(json.dumps(asdict(owner)))
    code, error = start(2)
    assert (code, ENDS in error) == (2, True)
    assert not (out / "run.h5").exists()
    assert start(0)[0] == 0


def test_a_finished_run_says_so_however_often_it_is_started(start: Start) -> None:
    assert [start(restarts, rounds=0)[0] for restarts in range(4)] == [0, 0, 0, 0]
