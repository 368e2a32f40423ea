"""A time limit of one minute and a job of two: Slurm itself warns it, the script puts it back, and its bits are those of one run.

Takes three to five minutes.
"""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flora_hpc.records import hdf5file
from tests.slurm.conftest import Slurm
from tests.slurm.test_scripts import bits, field, logs

pytestmark = pytest.mark.slurm

SETTINGS = ["-s", "client.group_size=1", "-s", "comm.backend=gloo"]
TRAINED_SECONDS = 60.0  # of all rounds together; Slurm warns after 15 to 45 seconds, of which the start takes some
LAYOUT = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1"]


@pytest.mark.timeout(1500)
def test_a_job_that_is_longer_than_its_time_limit(slurm: Slurm, tmp_path: Path) -> None:
    srun = ["srun", *LAYOUT, "--mpi=none", "flora-hpc", "run", "configs/quickstart.yaml", *SETTINGS]
    assert slurm(*srun, "-s", "rounds=5", "--out", tmp_path / "short").returncode == 0
    seconds = np.median(hdf5file.read(tmp_path / "short")[1]["rounds"]["round_seconds"][1:])
    rounds = f"rounds={int(TRAINED_SECONDS / seconds)}"

    script = tmp_path / "job.sh"
    asked = ["--nodes=2", "--cpus-per-task=1", "--mpi=none", *SETTINGS, "-s", rounds]
    words = ["flora-hpc", "slurm", "configs/quickstart.yaml", *asked]
    script.write_text(subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path).stdout)
    submitted = slurm("sbatch", "--time=1", "--signal=USR1@15", script)  # flora-hpc slurm would not write so short a limit
    job = submitted.stdout.split()[-1]
    wait_for_the_end(lambda name: field(slurm, job, name), lambda: slurm("scontrol", "update", f"JobId={job}", "StartTime=now"))
    said = logs(tmp_path)
    assert field(slurm, job, "JobState") == "COMPLETED", said
    assert int(field(slurm, job, "Restarts")) >= 2, said
    assert said.count("a signal stopped the run") == int(field(slurm, job, "Restarts")), "no round was cut off by the limit itself"

    assert slurm(*srun, "-s", rounds, "--out", tmp_path / "unbroken").returncode == 0
    run = tmp_path / "runs" / "quickstart"
    assert bits(run) == bits(tmp_path / "unbroken")
    (attributes, mine), (_, theirs) = hdf5file.read(run), hdf5file.read(tmp_path / "unbroken")
    assert attributes["status"] == "finished"
    for name in ("round", "test_accuracy", "train_loss"):
        np.testing.assert_array_equal(mine["rounds"][name], theirs["rounds"][name])


def wait_for_the_end(field: Callable[[str], str], start_now: Callable[[], object]) -> None:
    """Let a job that was put back start soon, as often as it is; Slurm would wait two minutes each time.

    It waits for a reason: the end of the script that put the job back must not be taken for that of the next one.
    """
    end = time.monotonic() + 1200
    while (state := field("JobState")) in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"):
        assert time.monotonic() < end
        if state == "PENDING":
            time.sleep(8)
            start_now()
        time.sleep(2)
