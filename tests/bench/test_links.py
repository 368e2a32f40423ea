import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from flora_hpc.bench import links
from flora_hpc.cli import app
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.errors import UserError

Flora = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8])
def test_every_pair_once_and_nobody_twice_in_a_round(count: int) -> None:
    rounds = links.pairings(count)
    pairs = [pair for at_once in rounds for pair in at_once]
    assert sorted(pairs) == [(a, b) for a in range(count) for b in range(a + 1, count)]
    for at_once in rounds:
        places = [place for pair in at_once for place in pair]
        assert len(places) == len(set(places))


def test_the_slowest_pair() -> None:
    rates = [[None, 4.0, 2.0], [4.0, None, 8.0], [2.0, 8.0, None]]
    assert links.slowest(["a", "b", "c"], rates) == {"slowest": ["a", "c"], "slowest_over_median": 0.5}


class Three(Serial):
    """Rank 0 of three; the others take one and three seconds more in each repeat."""

    size = 3

    def allgather(self, data: bytes) -> list[bytes]:
        own = json.loads(data)
        return [data, *(json.dumps([value + more for value in own]).encode() for more in (1.0, 3.0))]


def test_fastest_median_and_slowest_rank() -> None:
    row = links.timed(Three(), Three(), "barrier", 0, 4)
    assert (row["what"], row["ranks"], row["bytes"], row["repeats"]) == ("barrier", 3, 0, 4)
    assert row["median_seconds"] - row["min_seconds"] == pytest.approx(1.0)
    assert row["max_seconds"] - row["min_seconds"] == pytest.approx(3.0)


def test_repeats_by_size() -> None:
    assert [links.timed(Serial(), Serial(), "gather", size, None)["repeats"] for size in (8, 2**20, 2**22)] == [100, 32, 10]


def test_one_process_has_no_pairs() -> None:
    assert links.pairs(Serial(), 1, lambda text: None) is None


def test_unknown_collectives() -> None:
    assert links.find("all") == ["allreduce", "broadcast", "gather", "exchange", "barrier"]
    with pytest.raises(UserError, match="--collectives: no collective 'alreduce'; did you mean 'allreduce'"):
        links.find("gather,alreduce")


def test_the_table_of_one_process() -> None:
    words = ["bench", "comm", "--collectives", "gather,barrier", "--sizes", "8,1KiB", "--repeats", "2"]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.exception
    rows = [line.split() for line in done.stdout.splitlines() if line.strip().startswith(("gather", "barrier"))]
    assert [(row[0], row[3]) for row in rows[:3]] == [("gather", "8"), ("gather", "1,024"), ("barrier", "0")]
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.mpi
def test_two_ranks_under_mpiexec(flora: Flora, mpiexec: list[str]) -> None:
    words = ["bench", "comm", "--collectives", "all", "--pairs", "--sizes", "8,64", "--repeats", "2", "--json"]
    done = flora(*words, under=[*mpiexec, "-n", "2"])
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["bench"] == "comm"
    assert [(row["what"], row["bytes"]) for row in result["collectives"]][-3:] == [
        ("exchange", 8),
        ("exchange", 64),
        ("barrier", 0),
    ]
    assert all(0 < row["min_seconds"] <= row["median_seconds"] <= row["max_seconds"] for row in result["collectives"])
    pairs = result["pairs"]
    assert (pairs["names"], pairs["slowest"], pairs["slowest_over_median"]) == (["rank 0", "rank 1"], ["rank 0", "rank 1"], 1.0)
    assert pairs["bytes_per_second"][0][1] == pairs["bytes_per_second"][1][0] > 0
