"""A client that is not training costs nothing: a million of them fit where a hundred do."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

Flora = Callable[..., subprocess.CompletedProcess[str]]


def peak_memory(flora: Flora, out: Path, num_clients: int) -> int:
    population = ["-s", f"partition.num_clients={num_clients}", "-s", "partition.examples_per_client=32", "-s", "cohort.size=20"]
    result = flora("run", "configs/quickstart.yaml", "-s", "rounds=2", *population, "--out", out)
    assert result.returncode == 0, result.stderr
    with h5py.File(out / "run.h5", swmr=True) as file:
        assert file.attrs["num_clients"] == num_clients
        assert (file["rounds"]["num_clients"][1:] == 20).all()
        assert (file["clients"]["num_examples"][:] == 32).all()
        return int(file["ranks"]["peak_memory_bytes"].max())


def test_a_million_registered_clients_need_the_memory_of_a_hundred(flora: Flora, tmp_path: Path) -> None:
    few, many = peak_memory(flora, tmp_path / "few", 100), peak_memory(flora, tmp_path / "many", 1_000_000)
    assert many < 1.1 * few


@pytest.mark.parametrize(
    "special",
    [
        pytest.param([], marks=pytest.mark.long),
        ["cohort.size=1000", "partition.num_clients=1000", "partition.examples_per_client=32"],
    ],
)
def test_plan_predicts_the_peak_within_15_percent(special: list[str], flora: Flora, tmp_path: Path) -> None:
    """Of a process that begins as a user's does: in forks, more is imported than a run needs."""
    words = [
        "configs/quickstart.yaml",
        *(word for setting in ("rounds=2", "client.epochs=1", *special) for word in ("-s", setting)),
    ]
    told = flora("plan", *words, COLUMNS="300").stdout
    (number, unit) = re.search(r"per rank about ([\d.]+) ([MG])B: weights", told).groups()  # type: ignore[union-attr]
    result = flora("run", *words, "--out", tmp_path / "run", afresh=True)
    assert result.returncode == 0, result.stderr
    with h5py.File(tmp_path / "run" / "run.h5", swmr=True) as file:
        peak = int(file["ranks"]["peak_memory_bytes"].max())
    assert float(number) * 10 ** {"M": 6, "G": 9}[unit] == pytest.approx(peak, rel=0.15)
