"""`bench study`: a study and lone runs, with the same bits."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from flora_hpc.cli._bench_study import show

SMALL = ["-s", "rounds=1", "-s", "client.epochs=1", "-s", "partition.num_clients=2"]


@pytest.mark.long
def test_a_study_and_its_lone_runs(flora: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = flora("bench", "study", "configs/quickstart.yaml", "client.lr=5e-4", *SMALL, "--ranks", "1", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["num_points"], result["num_equal"], result["num_ranks"]) == (1, 1, 1)
    assert result["study_seconds"] > result["train_seconds"] > 0
    assert result["ratio"] == result["study_seconds"] / result["lone_seconds"]
    console = Console(width=100, record=True)
    show(console, result)
    assert "1 of 1 adapters are equal" in console.export_text()


def test_a_point_that_fails_ends_the_measurement(flora: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = flora("bench", "study", "configs/quickstart.yaml", "client.lrr=1", "--ranks", "1")
    assert done.returncode == 2
    assert "unknown key; did you mean client.lr?" in done.stderr
    assert "the program failed with exit code 2" in done.stderr
