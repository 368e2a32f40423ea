"""`flora-hpc predict`, as people and programs see it."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flora_hpc import api
from flora_hpc.bench.predict import outcome
from tests.bench.predict.made import SHARED, config
from tests.conftest import ROOT

Flora = Callable[..., subprocess.CompletedProcess[str]]
CONFIG = ROOT / "flora_hpc" / "bench" / "round.yaml"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("predict")
    for size in (2, 6):
        of_run = config(cohort__size=size, client__first_step="each")
        api.run(of_run, out=folder / str(size), rounds=4, shared=SHARED, signals=False)
    return [folder / "2", folder / "6"]


def words(runs: list[Path], *others: object) -> list[object]:
    given = [word for run in runs for word in ("--from", run)]
    return ["predict", CONFIG, "-s", "cohort.size=40", "-s", "client.first_step=each", *given, *others]


def test_a_table_for_people(flora: Flora, runs: list[Path]) -> None:
    done = flora(*words(runs, "--nodes", 2, "--ranks-per-node", 2))
    assert done.returncode == 0, done.stderr
    assert "round.yaml on 2 nodes, 4 ranks: 40 clients a round, in 4 groups" in done.stdout
    for text in ("train", "slowest rank", "a round", "predicted", "most of it", "node hours", "up to 1 rank and 6 clients a round"):
        assert text in done.stdout
    assert "communication counts as 0" in " ".join(done.stdout.split())


def test_an_object_for_programs(flora: Flora, runs: list[Path]) -> None:
    done = flora(*words(runs, "--json", "-s", "cohort.size=6"))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["schema"], result["bench"], result["ranks"], result["clients"], result["rounds"]) == (1, "predict", 1, 6, 50)
    of_round = result["round_seconds"]
    assert 0 < of_round["low"] <= of_round["value"] <= of_round["high"]
    assert (of_round["is"], of_round["measured_by"]) == ("predicted", str(runs[1]))
    assert sum(term["value"] for term in result["terms"].values()) == pytest.approx(of_round["value"])
    assert sum(term["share"] for term in result["terms"].values()) == pytest.approx(1)
    assert result["terms"]["train"]["from"] == [str(run) for run in runs]
    assert result["measured_up_to"] == {"ranks": 1, "clients": 6}
    assert result["total_seconds"]["value"] == pytest.approx(result["start_up_seconds"]["value"] + 50 * of_round["value"])
    assert result["node_hours"]["value"] == pytest.approx(result["total_seconds"]["value"] / 3600)
    assert result["log_bytes"] > 50 * 6 * 20


@pytest.mark.parametrize(
    ("others", "says"),
    [
        (["--nodes", 0], "--nodes"),
        (["-s", "client.batch_size=8"], "give a run with a smaller client.batch_size, too (--from)"),
        (["--gpus-per-node", 1], "was computed on CPUs, and says nothing of GPUs"),
    ],
)
def test_bad_input(flora: Flora, runs: list[Path], others: list[object], says: str) -> None:
    done = flora(*words(runs, *others))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_it_measures_by_itself(flora: Flora) -> None:
    done = flora("predict", CONFIG, "-s", "cohort.size=2", "-s", "partition.num_clients=10", "--json")
    assert done.returncode == 0, done.stderr
    assert re.search("measuring 1 of [24]: 1 client, batch 32", done.stderr)
    result = json.loads(done.stdout)
    assert result["measured_up_to"]["clients"] == 2
    assert [text for text in result["warnings"] if not text.startswith("load before the start: ")] == []


def test_a_page(
    flora: Flora, invoke: Callable[..., str], runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome, "NODES", (1, 2))
    monkeypatch.setattr(outcome, "CLIENTS_OF_ROUND", (4, 10**9))
    invoke(*words(runs, "--page", tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert "<svg" in page
    assert "1,000,000,000" in page, "a cohort that cannot be is named with its reason"
    done = flora(*words(runs, "--page", tmp_path / "no" / "page.html"))
    assert (done.returncode, "there is no directory" in done.stderr) == (2, True)


def test_the_time_limit_of_a_job(flora: Flora, runs: list[Path]) -> None:
    given = ["-s", "cohort.size=40", "-s", "client.first_step=each", "-s", "rounds=1000000"]
    done = flora("slurm", CONFIG, *given, "--time", "auto", "--from", runs[0], "--from", runs[1])
    assert done.returncode == 0, done.stderr
    (limit,) = (line.removeprefix("#SBATCH --time=") for line in done.stdout.splitlines() if line.startswith("#SBATCH --time="))
    hours, minutes, rest = map(int, limit.split(":"))
    assert hours > 1
    assert (minutes < 60, rest) == (True, 0)
    assert f"--time {limit}" in done.stdout, "the command in the script has the limit, not the runs"
    assert "--from" not in done.stdout


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--time", "auto"], "--time auto: needs runs on such nodes"),
        (["--from", "RUN"], "is for --time auto"),
    ],
)
def test_a_time_limit_that_cannot_be_predicted(flora: Flora, runs: list[Path], given: list[str], says: str) -> None:
    done = flora("slurm", CONFIG, *(str(runs[0]) if word == "RUN" else word for word in given))
    assert done.returncode == 2
    assert says in done.stderr
