"""A run directory belongs to one process at a time."""

import json
import os
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from flora_hpc.errors import UserError
from flora_hpc.owner import claim as claims
from flora_hpc.owner import living
from flora_hpc.owner.claim import Claim
from flora_hpc.owner.living import Owner


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(living, "DEAD_SECONDS", 0.6)
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def write(folder: Path, owner: Owner, number: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    claims.path(folder, number).write_text(json.dumps(asdict(owner)))
    return claims.path(folder, number)


def elsewhere(**more: object) -> Owner:
    return replace(living.this_process(), host="node7", pid=41, boot="another", **more)  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_second_one_is_refused_and_told_who_owns_it(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    with Claim(out) as first:
        first.take()
        with Claim(out) as second, pytest.raises(UserError) as error:
            second.take()
        assert f"--out {out}: belongs to a run that goes on: process {os.getpid()} on host " in str(error.value)
        assert " s ago; wait for its end, stop it (kill " in str(error.value)
        assert names(out) == ["owner-000001.json"]
        first.check()
    assert not (tmp_path / "a").exists(), "nothing was written, so nothing stays"


def test_one_of_many_that_start_at_the_same_moment_gets_it(tmp_path: Path) -> None:
    gate, refused, owners = threading.Barrier(8), [], []

    def start() -> None:
        claim = Claim(tmp_path / "run")
        gate.wait()
        try:
            claim.take()
            owners.append(claim)
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(owners), len(refused)) == (1, 7)
    owners[0].__exit__(None, None, None)


def test_a_dead_owner_is_taken_over_at_once_and_that_is_said(tmp_path: Path) -> None:
    sentences: list[str] = []
    write(tmp_path, replace(living.this_process(), started="1", job="5"))
    with Claim(tmp_path, sentences.append) as claim:
        claim.take()
        assert names(tmp_path) == ["owner-000001.json", "owner-000002.json"]
        assert sentences == [], "the run may still be refused"
        claim.started(None)
        assert names(tmp_path) == ["owner-000002.json"]
    (sentence,) = sentences
    owner = f"process {os.getpid()} on host {living.this_process().host}, Slurm job 5"
    assert sentence.startswith(f"takes over {tmp_path} from {owner}, which died; its last sign was ")
    with Claim(tmp_path, sentences.append) as later:
        later.take()
    assert len(sentences) == 1, "an owner that ended is nobody to take over from"


def test_an_owner_elsewhere_that_shows_signs_lives(tmp_path: Path) -> None:
    file, end = write(tmp_path, elsewhere()), threading.Event()

    def beat() -> None:
        while not end.wait(0.05):
            os.utime(file)

    thread = threading.Thread(target=beat)
    thread.start()
    with Claim(tmp_path) as claim, pytest.raises(UserError, match="process 41 on host node7, last sign of life "):
        claim.take()
    end.set()
    thread.join()


@pytest.mark.parametrize("clock", [-3600, 3600], ids=["behind", "ahead"])
def test_an_owner_elsewhere_without_a_sign_is_dead_after_a_while_whatever_this_hosts_clock_says(
    clock: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentences: list[str] = []
    write(tmp_path, elsewhere())
    monkeypatch.setattr(claims.time, "time", lambda: 1e9 + clock)
    with Claim(tmp_path, sentences.append) as claim:
        claim.take()
        claim.started(None)
    assert sentences[0].startswith(f"{tmp_path} belongs to process 41 on host node7; waits up to ")
    assert ", which died; its last sign was " in sentences[1]


def test_an_owner_that_was_suspended_for_long_writes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 1000)  # its thread does not run either
    with Claim(tmp_path) as slow:
        slow.take()
        slow.started(None)
        write(tmp_path, elsewhere(), 2)
        slow.check()
        monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0)
        with pytest.raises(UserError, match="now belongs to process 41 on host node7, since this process gave no sign"):
            slow.round(None)
    assert claims.read(tmp_path, 2).host == "node7"
    assert not claims.read(tmp_path, 1).ended


def test_without_hard_links_one_gets_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(claims.os, "link", no_links)
    with Claim(tmp_path) as first, Claim(tmp_path) as second:
        first.take()
        with pytest.raises(UserError, match="belongs to a run that goes on"):
            second.take()


@pytest.mark.parametrize("text", ["", '{"pid": 1', "[]", '{"pid": [1]}', '{"pid": 1, "written by": "a newer version"}'])
def test_a_file_that_cannot_be_understood_is_judged_by_its_age(text: str, tmp_path: Path) -> None:
    claims.path(tmp_path, 3).write_text(text)
    with Claim(tmp_path) as claim:
        claim.take()
        assert "owner-000004.json" in names(tmp_path)


@pytest.mark.parametrize("path", ["file/run", "file"])
def test_what_cannot_be_written_is_told_when_it_is_needed(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Claim(tmp_path / path) as claim:
        claim.take()
        claim.check()
        with pytest.raises(
            UserError, match=r"file: cannot be written|file/run: cannot be written \(Not a directory\); choose a dir"
        ):
            claim.require()


def test_starts_of_a_requeued_job_that_save_nothing_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start is killed: its owner file stays, without the mark `ended`."""

    def start(restarts: int, saved: int, job: str = "7") -> int:
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        claim = Claim(tmp_path)
        claim.take(lambda: saved)
        claim._end.set()
        write(tmp_path, replace(claim.owner, started="1"), claim._number)
        return claim.owner.idle

    assert [start(0, -1), start(1, -1), start(2, -1)] == [0, 1, 2]
    assert start(3, 5) == 0, "a round was saved"
    assert [start(4, 5), start(5, 5)] == [1, 2]
    assert start(6, 5, job="8") == 0
