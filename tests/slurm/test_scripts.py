"""Every script in slurm/ runs on a cluster, with the bits of a lone process; the command line makes it small."""

import ctypes.util
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flora_hpc.records import hdf5file
from tests.conftest import ROOT
from tests.slurm.conftest import Slurm

pytestmark = pytest.mark.slurm

SMALL = ["-s", "rounds=1", "-s", "partition.num_clients=4", "-s", "client.group_size=1"]
GLOO = ["-s", "comm.backend=gloo"]  # works under every --mpi, and without a GPU
ONE_NODE, TWO_NODES = (["--nodes=1", "--ntasks-per-node=2"], ["--nodes=2", "--ntasks-per-node=1"])
GPUS = ["--gpus-per-node=2"]
JOBS = {  # what sbatch is told, and the number of ranks
    "gpu-node": ([*ONE_NODE, *GPUS], 2),
    "gpu-nodes": (["--nodes=2", "--ntasks-per-node=2", *GPUS], 4),
    "cpu-nodes": (TWO_NODES, 2),
    "container": ([*TWO_NODES, *GPUS], 2),
    "clients-array": ([*ONE_NODE, "--array=0-1"], 2),
}
Flora = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def alone(flora: Flora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run of one process, without a launcher."""
    out = tmp_path_factory.mktemp("alone") / "run"
    result = flora("run", "configs/quickstart.yaml", *SMALL, "--out", out)
    assert result.returncode == 0, result.stderr
    return out


def bits(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.log")))


def test_no_script_is_forgotten() -> None:
    assert set(JOBS) == {path.stem for path in (ROOT / "slurm").glob("*.sh")}


@pytest.mark.parametrize("name", JOBS)
def test_a_script_runs_to_its_end(name: str, slurm: Slurm, alone: Path, tmp_path: Path) -> None:
    asked, num_ranks = JOBS[name]
    if "--gpus-per-node=2" in asked and "gpu" not in slurm("sinfo", "-h", "-o", "%G").stdout:
        pytest.skip("the cluster has no GPUs")
    array = name == "clients-array"
    settings = SMALL[:2] + SMALL[4:] if array else SMALL
    result = slurm("sbatch", "-W", "--cpus-per-task=1", *asked, ROOT / "slurm" / f"{name}.sh", *settings, *GLOO)
    assert result.returncode == 0, result.stderr + logs(tmp_path)
    runs = sorted((tmp_path / "runs").iterdir())
    assert len(runs) == (2 if array else 1)
    for run in runs:
        attributes, _ = hdf5file.read(run)
        facts = [attributes[key] for key in ("status", "launcher", "backend", "world_size")]
        assert facts == ["finished", "slurm", "gloo", num_ranks]
    if not array:
        assert bits(runs[0]) == bits(alone)


def test_open_mpi_under_pmix(slurm: Slurm, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """slurm/cpu-nodes.sh as it stands, with the system's Open MPI."""
    pytest.importorskip("mpi4py")
    found = ctypes.util.find_library("mpi")
    if found is None or not found.endswith(".so.40") or "pmix" not in str(slurm("srun", "--mpi=list")):
        pytest.skip("needs Open MPI and Slurm's pmix plugin")
    monkeypatch.setenv("MPI4PY_LIBMPI", found)
    result = slurm("sbatch", "-W", "--cpus-per-task=1", *TWO_NODES, ROOT / "slurm" / "cpu-nodes.sh", *SMALL)
    assert result.returncode == 0, result.stderr + logs(tmp_path)
    attributes, _ = hdf5file.read(tmp_path / "runs" / "quickstart")
    assert (attributes["backend"], attributes["world_size"]) == ("mpi", 2)
    assert bits(tmp_path / "runs" / "quickstart") == bits(alone)


def test_a_job_that_is_warned_goes_on_after_a_requeue(slurm: Slurm, flora: Flora, tmp_path: Path) -> None:
    """USR1 to the tasks, as Slurm sends it before the time limit; then the same job runs again, and ends with the same bits."""
    settings = ["-s", "rounds=8", *SMALL[2:]]
    submitted = slurm("sbatch", "--cpus-per-task=1", *TWO_NODES, ROOT / "slurm" / "cpu-nodes.sh", *settings, *GLOO)
    job = submitted.stdout.split()[-1]
    wait_for(lambda: "round 2/" in logs(tmp_path), 120)
    slurm("scancel", "--signal=USR1", job)
    wait_for(lambda: field(slurm, job, "Restarts") == "1", 60)

    def started_again() -> bool:
        slurm("scontrol", "update", f"JobId={job}", "StartTime=now")
        return field(slurm, job, "JobState") in ("RUNNING", "COMPLETED")

    time.sleep(15)  # Slurm would wait two minutes, so that nothing of the job is left on its nodes
    wait_for(started_again, 200)
    wait_for(lambda: field(slurm, job, "JobState") == "COMPLETED", 180)
    assert "stopped the run after round" in logs(tmp_path)
    attributes, _ = hdf5file.read(tmp_path / "runs" / "quickstart")
    assert attributes["status"] == "finished"
    again = slurm("sbatch", "-W", "--cpus-per-task=1", *TWO_NODES, ROOT / "slurm" / "cpu-nodes.sh", *settings, *GLOO)
    assert again.returncode == 0
    assert "has finished already" in logs(tmp_path)
    flora("run", "configs/quickstart.yaml", *settings, "--out", tmp_path / "alone")
    assert bits(tmp_path / "runs" / "quickstart") == bits(tmp_path / "alone")


def field(slurm: Slurm, job: str, name: str) -> str:
    found = re.search(rf"\b{name}=(\S+)", slurm("scontrol", "show", "job", job).stdout)
    return found[1] if found else ""


def wait_for(happened: Callable[[], bool], num_seconds: float) -> None:
    end = time.monotonic() + num_seconds
    while not happened():
        assert time.monotonic() < end, f"not within {num_seconds} seconds"
        time.sleep(0.5)
