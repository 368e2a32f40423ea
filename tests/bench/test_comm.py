import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flora_hpc.bench import comm
from flora_hpc.cli._bench_comm import parse_sizes
from flora_hpc.cli.bench import app
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.launch import Launch
from flora_hpc.config import CommConfig
from flora_hpc.errors import UserError
from tests import forks

Flora = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ["--sizes", "1KiB,98312", "--repeats", "3"]
TORCHRUN = [*forks.torchrun(2), "-m", "flora_hpc"]


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["comm", *arguments], env={"COLUMNS": "80"})


def check(result: dict[str, Any], backend: str) -> None:
    assert (result["backend"], result["world_size"], result["num_hosts"]) == (backend, 2, 1)
    assert [one["bytes"] for one in result["sizes"]] == [1024, 98312]
    for one in result["sizes"]:
        assert one["repeats"] == 3
        assert one["ratio"] == one["ours_seconds"] / one["raw_seconds"]
        assert one["difference_seconds"] == one["ours_seconds"] - one["raw_seconds"]
        assert one["ours_seconds"] > 0
        assert one["ours_bus_bytes_per_second"] == pytest.approx(one["bytes"] / one["ours_seconds"])  # 2 (n - 1) / n is 1


@pytest.mark.mpi
def test_under_mpiexec_rank_0_says_it_once(flora: Flora, mpiexec: list[str]) -> None:
    done = flora("bench", "comm", *SMALL, "--json", under=[*mpiexec, "-n", "2"])
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout), "mpi")
    assert done.stderr.count("98,312 bytes, 3 times") == 1


def test_under_torchrun_with_gloo(flora: Flora) -> None:
    done = subprocess.run(
        [*TORCHRUN, "bench", "comm", *SMALL, "--backend", "gloo", "--json"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout.splitlines()[-1]), "gloo")


def test_alone_only_the_simulators_own_code_is_measured() -> None:
    result = bench(*SMALL, "--json")
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert (found["backend"], found["world_size"]) == ("serial", 1)
    for one in found["sizes"]:
        assert (one["raw_seconds"], one["ratio"], one["ours_bus_bytes_per_second"]) == (None, None, None)
        assert one["difference_seconds"] == one["ours_seconds"] > 0


def test_the_table_for_people() -> None:
    result = bench(*SMALL)
    assert result.exit_code == 0, result.exception
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "1 rank on 1 host, backend serial, started alone"
    assert [line.split()[0] for line in lines if line.strip().startswith(("1,024", "98,312"))] == ["1,024", "98,312"]
    assert "one process has nobody to add up with" in " ".join(result.stdout.split())


class Two:
    """Rank 0 of two. The other one takes 100 s longer while warming up, and then 3, 1 and 6 s."""

    name, rank, size = "gloo", 0, 2

    def barrier(self) -> None: ...

    def allreduce(self, array: object) -> None: ...

    def allgather(self, data: bytes) -> list[bytes]:
        mine = json.loads(data)
        theirs = {name: [value + 100 for value in values[: comm.WARM_UP]] + [3.0, 1.0, 6.0] for name, values in mine.items()}
        return [data, json.dumps(theirs).encode()]


def test_the_slowest_rank_of_each_repeat_counts_and_then_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "raw_call", lambda *rest: lambda: None)
    monkeypatch.setattr(comm, "timed", lambda call: (call(), 2.0)[1])
    found = comm.measure_size(Two(), None, None, 80, 3)  # type: ignore[arg-type]
    assert (found["ours_seconds"], found["raw_seconds"], found["ratio"]) == (3.0, 3.0, 1.0)  # of 3, 2 and 6
    assert found["repeats"] == 3


def test_small_sizes_are_repeated_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []

    def note(*rest: Any) -> dict[str, Any]:
        chosen.append(rest[-1])
        return {}

    monkeypatch.setattr(comm, "measure_size", note)
    monkeypatch.setattr(comm.devices, "share_cores", lambda *rest: 1)
    comm.measure(Serial(), Launch(), CommConfig(device="cpu"), [1024, 2**20, 2**26], None, lambda text: None)
    assert chosen == [200, 128, 10]


def test_bus_rate_is_that_of_nccl_tests() -> None:
    assert comm.bus_rate(100, 4, 2.0) == 75.0  # 2 * 3 / 4 * 100 / 2
    assert comm.bus_rate(100, 1, 2.0) is None


def test_sizes() -> None:
    assert parse_sizes("1KiB, 98312,1MiB,8kB") == [1024, 98312, 2**20, 8000]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "98311"], "--sizes: 98311 is no whole number of int64, of 8 bytes each; take 98312 bytes"),
        (["--sizes", "large"], "--sizes: 'large' is no size; give for example --sizes 98312,64KiB,1MiB"),
        (["--sizes", "0"], "--sizes: 0 is no whole number of int64, of 8 bytes each; take 8 bytes"),
        (["--sizes", ","], "--sizes: names no size; give for example --sizes 98312,64KiB,1MiB"),
        (["--backend", "mppi"], "--backend: no backend 'mppi'; did you mean 'mpi'? (auto, gloo, mpi, nccl, serial)"),
    ],
)
def test_mistakes(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "measure", lambda *rest: pytest.fail("measured"))
    error = bench(*arguments).exception
    assert isinstance(error, UserError)
    assert message in str(error)
