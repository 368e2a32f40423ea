"""Ranks and nodes that fail under srun: the job ends, somebody names who failed, and every round that was told of is in run.h5."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flora_hpc.comm import mpilibrary
from flora_hpc.records import hdf5file
from tests.conftest import ROOT
from tests.slurm.conftest import CPUS, GPUS, NODES
from tests.slurm.test_launch import TWO_BY_TWO, right

pytestmark = pytest.mark.slurm

PROGRAM = [sys.executable, ROOT / "tests" / "slurm" / "failing_task.py"]
SMALL = ["-s", "rounds=4", "-s", "partition.num_clients=4", "-s", "client.epochs=1", "-s", "comm.timeout_seconds=5"]
NAMED = {  # by Slurm, which may be faster than ranks are, or by another rank; {host} as Slurm and hostname say it
    "killed": "{host}: task {rank}: Killed|No sign of life from rank {rank} on {host}",
    "killed-in-sum": "{host}: task {rank}: Killed|No sign of life from rank {rank} on {host}",
    "error": "rank {rank} of 4 on {host}: Traceback(.|\n)*ZeroDivisionError: a bug of this rank",
    "stopped": r"waited 5 s \(comm.timeout_seconds\) in a collective for rank {rank} on {host}",
}
KILL_ALL_OF_THIS_NETWORK = """
mine=$(readlink /proc/self/ns/net)
[ "$mine" != "$1" ] || exit 3
ip link set eth0 down
for process in /proc/[0-9]*; do
    number=${process#/proc/}
    [ "$(readlink $process/ns/net)" != "$mine" ] || [ $number = $$ ] || kill -9 $number
done
"""
Srun = Callable[..., subprocess.CompletedProcess[str]]


def backend(name: str) -> list[str]:
    """How to start ranks, and the backend that fits."""
    if name == "gloo":
        return ["--mpi=none", "comm.backend=gloo"]
    pytest.importorskip("mpi4py")
    return [right(mpilibrary.loaded()), "comm.backend=mpi"]


def assert_all_told_is_there(stdout: str, out: Path) -> list[int]:
    """Every round that was told of is in the file. Returns what is."""
    told = [int(number) for number in re.findall(r"^round (\d+)/", stdout, re.MULTILINE)]
    _, tables = hdf5file.read(out)
    rounds: list[int] = tables["rounds"]["round"].tolist()
    assert rounds == list(range(len(rounds)))
    assert len(rounds) > max(told, default=-1)
    assert [(tables["clients"]["round"] == number).sum() for number in rounds[1:]] == [4] * (len(rounds) - 1)
    return rounds


@pytest.mark.parametrize(
    ("name", "how", "rank"),
    [
        ("mpi", "killed", 0),
        ("mpi", "killed", 3),
        ("mpi", "killed-in-sum", 3),
        ("mpi", "error", 3),
        ("mpi", "stopped", 0),
        ("mpi", "stopped", 3),
        ("gloo", "killed", 3),
        ("gloo", "killed-in-sum", 0),
        ("gloo", "error", 0),
        ("gloo", "stopped", 3),
    ],
)
def test_a_rank_fails(
    name: str, how: str, rank: int, srun: Srun, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    mpi, setting = backend(name)
    moment, out = tmp_path / "moment", tmp_path / "out"
    run = [*PROGRAM, how, rank, moment, "run", "configs/quickstart.yaml", *SMALL, "-s", setting, "--out", out]
    result = srun(*TWO_BY_TWO, mpi, *run)
    record_property("seconds", time.time() - float(moment.read_text()))
    assert result.returncode not in (0, 2, 75)
    named = NAMED[how].format(rank=rank, host=hdf5file.read(out)[1]["topology"]["host"][rank].decode())
    assert re.search(named, result.stderr), result.stderr
    assert assert_all_told_is_there(result.stdout, out) in ([0], [0, 1])


@pytest.fixture
def lose(cluster: list[str]) -> Iterator[Callable[[int], None]]:
    """`lose(2)` cuts node 2 off and kills all that runs there; afterwards the cluster is whole again. Only on a testbed."""
    if not cluster:
        pytest.skip("nodes of a real cluster are not killed")
    testbed = cluster[0]

    def kill(node: int) -> None:
        ours = Path("/proc/self/ns/net").readlink()
        command = [testbed, "exec", "--node", str(node), "--", "bash", "-c", KILL_ALL_OF_THIS_NETWORK, "kill", str(ours)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode == 3:
            pytest.skip("nodes have no network of their own")

    yield kill
    subprocess.run([testbed, "up", *map(str, (NODES, CPUS, GPUS))], check=True, capture_output=True, timeout=120)


@pytest.mark.parametrize("name", ["mpi", "gloo"])
def test_a_node_is_lost(
    name: str, cluster: list[str], lose: Callable[[int], None], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """As when it loses its power: connections to it are not closed, they fall silent. Slurm may wait a minute for it."""
    mpi, setting = backend(name)
    out, log = tmp_path / "out", tmp_path / "log"
    settings = [*SMALL, "-s", "rounds=1000000", "-s", setting, "--out", out]
    command = [*cluster, "srun", *TWO_BY_TWO, mpi, sys.executable, "-um", "flora_hpc", "run", "configs/quickstart.yaml", *settings]
    with log.open("w") as opened:
        job = subprocess.Popen(
            list(map(str, command)), stdout=opened, stderr=opened, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        end = time.monotonic() + 120
        while "round 2/" not in log.read_text():
            assert job.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        lose(2)
        lost = time.monotonic()
        assert job.wait(timeout=240) not in (0, 2, 75)
    record_property("seconds", time.monotonic() - lost)
    said = log.read_text()
    assert re.search(r"waited 5 s \(comm.timeout_seconds\) in a collective for rank [23] on node2", said), said
    assert_all_told_is_there(said, out)
