import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flora_hpc import configfile
from flora_hpc.bench import scale as part
from flora_hpc.cli import app
from flora_hpc.errors import UserError
from flora_hpc.records.schema import ROUNDS, TOPOLOGY
from tests.contracts.known_helpers import rows

SMALL = ["-s", "partition.examples_per_client=4", "-s", "cohort.size=6", "-s", "client.epochs=1", "--rounds", "3", "--repeats", "1"]
CORES = os.sched_getaffinity(0)


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", "scale", *arguments], env={"COLUMNS": "80"})


def refusal(*arguments: str) -> str:
    error = bench(*arguments).exception
    assert isinstance(error, UserError)
    return str(error)


def played(start_up: float, *seconds: float) -> part.Played:
    """A run of 12 clients a round whose rounds took so long."""
    rounds = rows(ROUNDS, *({"num_clients": 12, "train_seconds": one, "round_seconds": one} for one in seconds))
    return part.Played(start_up, rounds, {}, rows(TOPOLOGY))


def test_ranks_are_compared_with_one() -> None:
    """One rank: 12 clients in 4 s (median of 4, 4, 6); two: in 3 s."""
    one, two = part.compare({1: [played(1, 4, 4), played(3, 6)], 2: [played(5, 2), played(7, 3, 4)]}, {})
    assert (one.client_updates_per_second, one.efficiency, one.speedup, one.start_up_seconds) == (3, 1, 1, 2)
    assert (two.num_ranks, two.client_updates_per_second, two.speedup, two.efficiency) == (2, 4, 4 / 3, 4 / 6)
    assert (two.start_up_seconds, two.round_seconds) == (6, 3)
    assert two.repeat_updates_per_second == [6, 12 / 3.5]
    assert two.shares["train"] == 1
    assert (one.independent_speedup, two.independent_speedup) == (None, None)


def test_independent_runs_count_together() -> None:
    """Two at once take 5 s a round where one alone takes 4."""
    _, two = part.compare({1: [played(1, 4)], 2: [played(1, 2)]}, {2: [played(1, 5), played(1, 5)]})
    assert two.independent_speedup == pytest.approx(2 * 4 / 5)


@pytest.mark.mpi
@pytest.mark.skipif(len(CORES) < 2, reason="two ranks need two cores")
@pytest.mark.long
def test_one_and_two_ranks_under_mpiexec(mpiexec: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = bench(*SMALL, "--ranks", "1,2", "--launcher", "mpiexec", "--independent", "--json")
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert "as many independent runs at once (1 of 1)" in result.stderr
    one, two = found["ranks"]
    assert (one["num_ranks"], two["num_ranks"], found["backend"], found["num_clients"]) == (1, 2, "mpi", 6)
    assert (found["rounds"], found["repeats"]) == (2, 1)
    assert found["num_threads"] == 1, "each rank has one core to itself"
    assert two["efficiency"] == pytest.approx(two["client_updates_per_second"] / (2 * one["client_updates_per_second"]))
    assert two["speedup"] == pytest.approx(2 * two["efficiency"])
    assert one["independent_speedup"] is None
    assert 0 < two["independent_speedup"] < 4
    for each in (one, two):
        assert each["client_updates_per_second"] == pytest.approx(6 / each["round_seconds"])
        assert each["start_up_seconds"] > 0
        assert sum(each["shares"].values()) == pytest.approx(1)
    assert [*tmp_path.iterdir()] == []
    assert os.sched_getaffinity(0) == CORES


def test_one_rank_under_torchrun_and_the_table_for_people() -> None:
    result = bench(*SMALL, "--ranks", "1", "--launcher", "torchrun")
    assert result.exit_code == 0, result.exception
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = (line.split() for line in lines if line.startswith("     1 "))
    assert (row[0], row[2], row[3]) == ("1", "1.00", "100.0%")
    text = " ".join(result.stdout.split())
    assert "medians over 2 whole rounds, of 1 runs each" in text
    assert "1 thread, cpu" in text
    assert "a rank, torchrun, backend" in text


def test_ranks_by_default() -> None:
    assert [part.default_ranks(n) for n in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]


def test_threads_of_a_core_are_one_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, siblings in {0: "0,4", 1: "1", 4: "0,4"}.items():
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(part, "CPUS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 1, 0, 7})
    assert part.cores() == [0, 1, 7], "of processor 7 the system says nothing"


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "play", lambda *arguments: pytest.fail("played"))
    monkeypatch.setattr(part, "cores", lambda: [0, 1])
    assert refusal("--ranks", "3,x").startswith("--ranks: 'x' is not a whole number of at least 1; give for example --ranks 1,2,4")
    assert refusal("--ranks", "2").endswith("--ranks 1,2")
    assert refusal("--ranks", "1,3") == "--ranks: 3 ranks need a core each, but this process may use 2; give at most 2"
    assert refusal("--ranks", "1,1") == "--ranks: names 1 twice; name it once"
    assert refusal("-s", "rounds=1").startswith("rounds: 1 leaves nothing to measure")
    assert "did you mean" in refusal("-s", "client.epoch=1")
    monkeypatch.setattr(part, "find_mpiexec", lambda: None)
    assert "install flora-hpc[mpich], or take --launcher torchrun" in refusal("--launcher", "mpiexec")
    monkeypatch.setenv("MPI_LOCALRANKID", "0")
    for name in ("PMI_SIZE", "MPI_LOCALNRANKS"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("PMI_RANK", "0")
    assert refusal("--ranks", "1").endswith("but the launcher started 2 of it; start one")
    for option in ("--rounds", "--repeats"):
        assert bench(option, "0").exit_code == 2


def test_torchrun_starts_ranks_where_there_is_no_mpiexec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "find_mpiexec", lambda: None)
    assert part.starter(None)(2)[:3] == [sys.executable, "-m", "torch.distributed.run"]
    monkeypatch.setattr(part, "find_mpiexec", lambda: "/bin/mpiexec")
    monkeypatch.setattr(part.importlib.util, "find_spec", lambda name: object())
    assert part.starter(None)(2) == ["/bin/mpiexec", "-n", "2", sys.executable]


def test_a_run_that_fails_is_told(tmp_path: Path) -> None:
    config, _ = configfile.load(part.DEFAULT, ["rounds=2"])
    (tmp_path / "config.yaml").write_text(config.to_yaml().replace("rounds: 2", "rounds: none"))
    with pytest.raises(UserError, match="the run on 1 ranks failed with exit code 2; what it said stands above"):
        part.play([[sys.executable]], tmp_path / "config.yaml", tmp_path / "out", [min(CORES)])
