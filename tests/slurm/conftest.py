"""A Slurm cluster for tests: FLORA_HPC_SLURM_TESTBED names the command that starts one."""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.conftest import ROOT

Srun = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def slurm() -> Iterator[Srun]:
    """`slurm(*arguments)` runs `srun arguments` on a cluster of two nodes with two cores and two fake GPUs each."""
    testbed = os.environ.get("FLORA_HPC_SLURM_TESTBED")
    if not testbed:
        pytest.skip("FLORA_HPC_SLURM_TESTBED does not name a command that starts a Slurm cluster")
    subprocess.run([testbed, "up", "2", "2", "2"], check=True, timeout=120)

    def srun(*arguments: object, timeout: float = 300, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        command = [testbed, "exec", "--", "srun", *map(str, arguments)]
        environ = os.environ | {"PYTHONPATH": str(ROOT)} | dict(env or {})
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=environ)

    try:
        yield srun
    finally:
        subprocess.run([testbed, "down", "--purge"], check=True, timeout=120)
