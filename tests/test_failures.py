"""An error on one rank ends the whole job at once, with that rank's message; finished rounds stay readable."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flora_hpc.records import hdf5file
from tests import forks
from tests.conftest import ROOT


@pytest.mark.mpi
@pytest.mark.parametrize("launcher", ["mpiexec", "torchrun"])
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_on_one_rank_ends_the_job(launcher: str, rank: int, mpiexec: list[str], python: list[str], tmp_path: Path) -> None:
    under = [*mpiexec, "-n", "2", *python] if launcher == "mpiexec" else forks.torchrun(2)
    program = [str(ROOT / "tests" / "failing_rank.py"), str(rank), "run", str(ROOT / "configs" / "quickstart.yaml")]
    small = ["-s", "rounds=4", "-s", "partition.num_clients=4", "--out", str(tmp_path / "out")]
    result = subprocess.run([*under, *program, *small], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.returncode not in (0, 2)
    assert f"rank {rank} of 2 on" in result.stderr
    assert "ZeroDivisionError: a bug of this rank" in result.stderr
    attributes, tables = hdf5file.read(tmp_path / "out")
    rounds = tables["rounds"]["round"].tolist()
    assert rounds in ([0, 1], [0, 1, 2]), "rank 1 may end the job while rank 0 still writes the round before"
    assert len(tables["clients"]) == 4 * (len(rounds) - 1)
    assert attributes["status"] in (("failed",) if rank == 0 else ("running", "failed")), "only rank 0 holds the file"
    assert not (tmp_path / "out" / "adapter").exists()


@pytest.mark.mpi
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_alone_cannot_connect_says_so_and_ends_the_job(
    rank: int, mpiexec: list[str], python: list[str], tmp_path: Path
) -> None:
    """The other one waits for it where MPI is initialised."""
    run = [*python, "-m", "flora_hpc", "run", "configs/quickstart.yaml", "--out", str(tmp_path / "out")]
    without = ["env", f"MPI4PY_LIBMPI={tmp_path / 'nowhere.so'}", *run]
    first, second = (without, run) if rank == 0 else (run, without)
    result = subprocess.run(
        [*mpiexec, "-n", "1", *first, ":", "-n", "1", *second], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("mpi4py found no MPI library") == 1
    assert (f"rank 1 of 2 on {socket.gethostname()}: backend 'mpi'" in result.stderr) == (rank == 1)
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_a_readable_file_that_says_interrupted(tmp_path: Path) -> None:
    listens = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # also where a parent ignores Ctrl-C
    program = f"{listens}; from flora_hpc.cli import main; main()"
    command = [sys.executable, "-u", "-c", program, "run", "configs/quickstart.yaml", "-s", "rounds=100000"]
    with subprocess.Popen([*command, "--out", str(tmp_path / "out")], stdout=subprocess.PIPE, text=True, cwd=ROOT) as run:
        assert run.stdout is not None
        assert any(line.startswith("round 2/") for line in run.stdout)
        run.send_signal(signal.SIGINT)
        rest = run.stdout.read()
        assert run.wait(timeout=60) == 130
    assert "run interrupted" in rest
    attributes, tables = hdf5file.read(tmp_path / "out")
    assert attributes["status"] == "interrupted"
    rounds = tables["rounds"]["round"].tolist()
    assert rounds == list(range(len(rounds)))
    assert len(rounds) >= 3


@pytest.mark.mpi
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_ends_the_job_and_is_named(rank: int, mpiexec: list[str], python: list[str], tmp_path: Path) -> None:
    """It is stopped while it trains in round 2; the other one waits for it in the sum of updates, as long as it may."""
    program = [*python, str(ROOT / "tests" / "signalled_rank.py"), "SIGSTOP", str(rank), "2", "run"]
    small = ["-s", "rounds=4", "-s", "partition.num_clients=4", "-s", "comm.timeout_seconds=4", "--out", str(tmp_path / "out")]
    config = str(ROOT / "configs" / "quickstart.yaml")
    result = subprocess.run([*mpiexec, "-n", "2", *program, config, *small], capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert result.returncode not in (0, 2)
    host = socket.gethostname()
    waited = f"rank {1 - rank} of 2 on {host}: waited 4 s (comm.timeout_seconds) in a collective for rank {rank} on {host}"
    assert waited in result.stderr
    written = hdf5file.read(tmp_path / "out")[1]["rounds"]["round"].tolist()
    assert written == [0, 1] or (rank == 0 and written == [0]), (
        "with rank 0 stops its thread, which may still write the round before"
    )


@pytest.mark.usefixtures("python")
def test_a_killed_rank_is_named_by_one_that_loses_its_connection(tmp_path: Path) -> None:
    program = [str(ROOT / "tests" / "signalled_rank.py"), "SIGKILL", "1", "2", "run", str(ROOT / "configs" / "quickstart.yaml")]
    small = ["-s", "rounds=4", "-s", "partition.num_clients=4", "--out", str(tmp_path / "out")]
    result = subprocess.run([*forks.torchrun(2), *program, *small], capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert result.returncode == 1
    assert f"No sign of life from rank 1 on {socket.gethostname()}." in result.stderr
    assert hdf5file.read(tmp_path / "out")[1]["rounds"]["round"].tolist()[:2] == [0, 1]


@pytest.mark.usefixtures("python")
@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "configs/quickstart.yaml", "--resume"], "--resume: which run? name its directory with --out"),
        (["run", "configs/quickstart.yaml", "--no-such-option"], "No such option: --no-such-option"),
        (["doctor", "--backend", "mpi"], "torchrun started 2 processes, but "),
    ],
    ids=["options", "usage", "backend"],
)
def test_a_mistake_of_all_ranks_is_said_once_also_where_one_is_late(late: int, arguments: list[str], sentence: str) -> None:
    """torchrun ends the late rank with the first one."""
    program = [str(ROOT / "tests" / "late_rank.py"), str(late), "2.5", *arguments]
    result = subprocess.run([*forks.torchrun(2), *program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert result.returncode != 0
    assert result.stderr.count(sentence) == 1, result.stderr


@pytest.mark.usefixtures("python")
@pytest.mark.parametrize("late", [0, 1])
def test_a_mistake_is_said_where_torchruns_store_is_not_there(late: int) -> None:
    program = [str(ROOT / "tests" / "late_rank.py"), str(late), "1", "run", "configs/quickstart.yaml", "--resume"]
    without = ["env", "MASTER_PORT=1", *forks.PYTHON]
    command = [*forks.torchrun(2)[: -len(forks.PYTHON)], *without, *program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert result.stderr.count("--resume: which run? name its directory with --out") == 1, result.stderr
