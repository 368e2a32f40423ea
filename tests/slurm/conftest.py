"""A Slurm cluster for tests: the one we are on, or one that a program brings up on this machine."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT

Slurm = Callable[..., subprocess.CompletedProcess[str]]
NODES, CPUS, GPUS = 2, 2, 2


@pytest.fixture(scope="session")
def cluster() -> Iterator[list[str]]:
    """What to put before a command of Slurm's.

    FLORA_HPC_SLURM=1 takes the cluster that this machine belongs to; pytest's --basetemp must then be a folder that all nodes
    share. FLORA_HPC_SLURM_TESTBED names a program that brings a cluster up with `up NODES CPUS GPUS`, runs a command there with
    `exec -- COMMAND` and takes it down with `down --purge`.
    """
    testbed = os.environ.get("FLORA_HPC_SLURM_TESTBED")
    if os.environ.get("FLORA_HPC_SLURM") == "1":
        if shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode:
            pytest.fail("FLORA_HPC_SLURM=1, but sinfo does not work here: run the tests on a login node")
        yield []
    elif testbed:
        up = subprocess.run([testbed, "up", *map(str, (NODES, CPUS, GPUS))], capture_output=True, text=True, timeout=120)
        assert up.returncode == 0, up.stdout + up.stderr
        yield [testbed, "exec", "--"]
        subprocess.run([testbed, "down", "--purge"], check=True, capture_output=True, timeout=120)
    else:
        pytest.skip(
            "needs a Slurm cluster: set FLORA_HPC_SLURM=1 on one, or FLORA_HPC_SLURM_TESTBED to a program that brings one up"
        )


@pytest.fixture
def slurm(cluster: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Run a command of Slurm's in a folder that has our configs/, with this checkout as `flora-hpc` and a stand-in Apptainer."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "flora-hpc").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m flora_hpc "$@"\n')
    (programs / "apptainer").write_text('#!/bin/sh\nwhile [ "$1" != flora-hpc ]; do shift; done\nexec "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")

    def command(*words: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*cluster, *map(str, words)], capture_output=True, text=True, timeout=timeout, cwd=tmp_path)

    return command


@pytest.fixture
def srun(cluster: list[str]) -> Slurm:
    """`srun(*arguments)` runs `srun arguments` with this checkout."""
    return started_by(cluster, "srun")


@pytest.fixture
def salloc(cluster: list[str]) -> Slurm:
    """`salloc(*arguments)` runs `salloc arguments` with this checkout."""
    return started_by(cluster, "salloc")


def started_by(cluster: list[str], program: str) -> Slurm:
    """A function that runs `program` of Slurm's with this checkout."""

    def command(*words: object, timeout: float = 300, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        environ = os.environ | {"PYTHONPATH": str(ROOT)} | dict(env or {})
        whole = [*cluster, program, *map(str, words)]
        return subprocess.run(whole, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=environ)

    return command
