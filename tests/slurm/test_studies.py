"""Studies on a cluster: the scripts of `flora-hpc slurm --study`, with the bits of a study of one process.

The time limit of one minute takes four to six minutes.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flora_hpc.records import hdf5file
from flora_hpc.records.followstudy import FollowedStudy
from flora_hpc.records.study import open_study
from tests.slurm.conftest import Slurm
from tests.slurm.test_preemption import wait_for_the_end
from tests.slurm.test_scripts import bits, field, logs

pytestmark = pytest.mark.slurm

SMALL = ["-s", "partition.num_clients=4", "-s", "client.group_size=1"]
GRID = ["client.lr=5e-4,1e-3", "--seeds", "2"]
TRAINED_SECONDS = 30.0  # of each of four points, two at a time; Slurm warns after 15 to 45 seconds
Flora = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def alone(flora: Flora, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The adapters of the small study, played by one process without a launcher."""
    out = tmp_path_factory.mktemp("alone") / "study"
    result = flora("study", "configs/quickstart.yaml", *GRID, *SMALL, "-s", "rounds=1", "--out", out)
    assert result.returncode == 0, result.stderr
    return adapters(out)


def adapters(study: Path) -> dict[str, bytes]:
    return {folder.name: bits(folder) for folder in (study / "points").iterdir()}


def script_of(tmp_path: Path, rounds: int, *asked: str) -> Path:
    """Prepare a study in studies/x, and write a script that plays it."""
    prepare = ["study", "configs/quickstart.yaml", *GRID, *SMALL, "-s", f"rounds={rounds}", "--out", "studies/x", "--prepare"]
    write = ["slurm", "--study", "studies/x", "--cpus-per-task", "1", *asked]
    script = tmp_path / "job.sh"
    for words in (prepare, write):
        result = subprocess.run(["flora-hpc", *words], capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        script.write_text(result.stdout)
    return script


@pytest.mark.parametrize(
    ("asked", "backend", "num_ranks"),
    [
        (["--nodes", "2", "--ntasks-per-node", "2", "--mpi", "none"], "serial", 1),
        (["--nodes", "2", "--ntasks-per-node", "2", "--mpi", "none", "--ranks-per-run", "2"], "gloo", 2),
        (["--nodes", "2", "--ntasks-per-node", "2", "--ranks-per-run", "2"], "mpi", 2),
        (["--nodes", "2", "--mpi", "none", "--shards", "2"], "serial", 1),
    ],
    ids=["gloo", "gloo by two ranks", "mpi by two ranks", "shards"],
)
def test_a_study_by_srun(
    asked: list[str], backend: str, num_ranks: int, slurm: Slurm, alone: dict[str, bytes], tmp_path: Path
) -> None:
    if backend == "mpi":
        pytest.importorskip("mpi4py")
    result = slurm("sbatch", "-W", script_of(tmp_path, 1, *asked))
    assert result.returncode == 0, result.stderr + logs(tmp_path)
    study = tmp_path / "studies" / "x"
    assert [point.status for point in open_study(study).rows] == ["finished"] * 4
    assert adapters(study) == alone
    for name in alone:
        attributes, _ = hdf5file.read(study / "points" / name)
        assert [attributes[key] for key in ("launcher", "backend", "world_size")] == ["slurm", backend, num_ranks]
    assert logs(tmp_path).count("\npoint ") >= 4, "a line a point"
    snapshot = FollowedStudy(study).poll()
    assert snapshot is not None
    assert (snapshot.status, snapshot.num_done, len(snapshot.ended)) == ("finished", 4, 4)
    if "--shards" in asked:
        assert {path.name for path in (study / "shards").iterdir()} == {"0-of-2", "1-of-2"}
        again = slurm("sbatch", "-W", tmp_path / "job.sh")
        assert again.returncode == 0, again.stderr + logs(tmp_path)
        assert adapters(study) == alone


@pytest.mark.timeout(1500)
def test_a_study_that_is_longer_than_its_time_limit(slurm: Slurm, tmp_path: Path) -> None:
    layout = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--mpi=none"]
    run = ["flora-hpc", "run", "configs/quickstart.yaml", *SMALL, "-s", "rounds=5", "--out", tmp_path / "short"]
    assert slurm("srun", "--nodes=1", "--ntasks=1", "--mpi=none", *run).returncode == 0
    seconds = np.median(hdf5file.read(tmp_path / "short")[1]["rounds"]["round_seconds"][1:])
    rounds = int(TRAINED_SECONDS / seconds)
    script = script_of(tmp_path, rounds, "--nodes", "2", "--mpi", "none")
    job = slurm("sbatch", "--time=1", "--signal=USR1@15", script).stdout.split()[-1]
    wait_for_the_end(lambda name: field(slurm, job, name), lambda: slurm("scontrol", "update", f"JobId={job}", "StartTime=now"))
    log = logs(tmp_path)
    assert field(slurm, job, "JobState") == "COMPLETED", log
    assert int(field(slurm, job, "Restarts")) >= 2, log
    assert log.count("a signal stopped the study") == int(field(slurm, job, "Restarts")), "no round was cut off by the limit itself"
    assert "4 of 4 points finished" in log
    study = ["study", "configs/quickstart.yaml", *GRID, *SMALL, "-s", f"rounds={rounds}", "-s", "comm.backend=gloo"]
    assert slurm("srun", *layout, "flora-hpc", *study, "--out", "studies/unbroken", timeout=600).returncode == 0
    assert adapters(tmp_path / "studies" / "x") == adapters(tmp_path / "studies" / "unbroken")


def test_setup_lines_and_options_of_sbatch(slurm: Slurm, tmp_path: Path) -> None:
    """`set -e` in the setup must not keep the script from its end, and sbatch reads quotes as we write them."""
    setup = tmp_path / "setup.sh"
    setup.write_text("set -euo pipefail\nmodule() { echo \"module $*, in job $SLURM_JOB_ID\"; }\nmodule load 'openmpi/4.1'\n")
    options = ["--sbatch", 'comment=it is "so" #1', "--sbatch", "mem=2G", "--sbatch", "exclusive", "--cpu-bind", "none"]
    small = ["-s", "rounds=1", *SMALL]
    words = ["flora-hpc", "slurm", "configs/quickstart.yaml", "--cpus-per-task", "1", "--setup", setup, *options, *small]
    script = tmp_path / "job.sh"
    script.write_text(subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path).stdout)
    result = slurm("sbatch", "-W", script)
    assert result.returncode == 0, result.stderr + logs(tmp_path)
    job = result.stdout.split()[-1]
    assert f"module load openmpi/4.1, in job {job}\n" in logs(tmp_path)
    shown = slurm("scontrol", "show", "job", job).stdout
    assert 'Comment=it is "so" #1' in shown
    assert "MinMemoryNode=2G" in shown
    assert slurm("sbatch", "-W", script, "-s", "rounds=none").returncode == 2, "srun's exit code is the script's"
