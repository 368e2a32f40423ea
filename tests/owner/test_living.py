"""Whether the owner of a run directory lives."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flora_hpc.errors import UserError
from flora_hpc.owner import living
from flora_hpc.owner.living import Owner


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)


def elsewhere(**more: object) -> Owner:
    """An owner on another host, whose pid is not valid on this host."""
    return replace(living.this_process(), host="node7", boot="another", pid_namespace="pid:[1]", **more)  # type: ignore[arg-type]


def test_this_process_lives_however_old_its_sign_is() -> None:
    assert living.lives(living.this_process(), 1e6) is True
    assert living.lives(replace(living.this_process(), host="another name of this machine"), 1e6) is True


def test_a_dead_process_is_known_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        owner = replace(living.this_process(), pid=process.pid, started=living._process(process.pid)[1])
        assert living.lives(owner, 0) is True
        process.kill()
        deadline = time.monotonic() + 20
        while living._process(process.pid)[0] != "Z" and time.monotonic() < deadline:  # not waited for: a zombie writes nothing
            time.sleep(0.01)
        assert living.lives(owner, 0) is False
    assert living.lives(owner, 0) is False


def test_a_pid_that_is_used_again_is_another_process() -> None:
    assert living.lives(replace(living.this_process(), started="1"), 0) is False


def test_a_pid_of_another_namespace_says_nothing() -> None:
    """A container may share host name and boot id with the host, but not its pids."""
    inside = replace(living.this_process(), pid_namespace="pid:[1]", pid=2**22 + 1)
    assert living.lives(inside, 10) is None
    assert living.lives(inside, living.DEAD_SECONDS) is False


def test_this_machine_has_started_again_since() -> None:
    earlier_start = replace(living.this_process(), boot="earlier")
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert living.lives(earlier_start, uptime + 10) is False
    assert living.lives(earlier_start, min(uptime, living.DEAD_SECONDS) - 1) is None, "it is another machine of the same name"


def test_slurm_starts_a_job_again_when_its_processes_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = elsewhere(job="7", restarts=0)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert living.lives(owner, 1) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert living.lives(owner, 1) is False
    assert living.lives(replace(owner, restarts=1), 1) is None, "another step of the same start"


def test_a_task_of_an_array_is_a_job_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"JOB_ID": "12", "ARRAY_JOB_ID": "10", "ARRAY_TASK_ID": "3", "STEP_ID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert (living.this_process().job, living.this_process().step) == ("10_3", "12.0")


@pytest.mark.parametrize(
    ("says", "alive"),
    [("echo 7.0", True), ("true", False), ("echo slurm_load_jobs error: Invalid job id specified >&2; exit 1", False)],
)
def test_slurm_is_asked_about_an_owner_without_a_sign(
    says: str, alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/asked\n{says}\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    owner = elsewhere(job="7", step="7.0")
    assert living.lives(owner, 5) is None
    assert not (tmp_path / "asked").exists(), "its sign is young"
    assert living.lives(owner, living.DEAD_SECONDS) is alive
    assert (tmp_path / "asked").read_text().split()[-2:] == ["--steps", "7.0"]


def test_a_slurm_that_does_not_answer_says_nothing_about_its_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/bash\necho slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match=r"squeue cannot tell .* \(slurm_load_jobs error: Unable to contact .*\); try again later"):
        living.lives(elsewhere(job="7", step="7.0"), living.DEAD_SECONDS)


def test_an_allocation_of_ones_own_is_no_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without a step was killed on another node; the new run starts in the same allocation."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert living.lives(elsewhere(job="7"), living.DEAD_SECONDS) is False
