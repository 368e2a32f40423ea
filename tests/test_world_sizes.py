"""Any number of ranks and any backend give the same bits: the promise that lets results be compared across clusters."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from flora_hpc.data import store as stores
from flora_hpc.records import hdf5file
from flora_hpc.records.views import PHASES
from tests import digits_file, forks
from tests.conftest import ROOT
from tests.same_runs import adapter

pytestmark = pytest.mark.mpi

Flora = Callable[..., subprocess.CompletedProcess[str]]
SMALL = {"rounds": 2, "partition.num_clients": 5}

NUM_IMAGES = 403
KEEP_NOTHING = ("mpi-1", "mpi-3")
DYNAMIC, STATIC, OVERLAP = {"cohort.assignment": "dynamic"}, {"cohort.assignment": "static"}, {"evaluate.overlap": True}
FEW: dict[str, Any] = {"rounds": 1, "partition.num_clients": 20, "cohort.size": 3, "cohort.fraction": None}
VALIDATION = SMALL | {"data.validation_fraction": 0.2}
SPECIAL: dict[str, dict[str, Any]] = {  # other experiments than the one of all other runs
    "fedfft": FEW | {"method.name": "fedfft"},
    "feddylora": FEW | {"method.name": "feddylora"},
    "jacobian": FEW | {"client.first_step": "jacobian"},
    "validation": VALIDATION,
    "sampled": SMALL | {"records.clients": "sample 2"},
    "rowless": SMALL | {"records.clients": "none"},
}
STARTS: dict[str, dict[str, dict[str, Any]]] = {  # start of ranks -> run -> what changes where and when work is done, and no bit
    "alone": {"alone": {}} | {f"{name}-alone": {} for name in SPECIAL},
    "gloo-2": {"gloo": {"client.group_size": 1}, "gloo-2-dynamic": DYNAMIC, "sampled-gloo": OVERLAP},
    "mpi-1": {"mpi-1": {"client.group_size": 2}},  # 3 groups; alone, all five clients are one
    "mpi-2": {f"{name}-mpi-2": DYNAMIC | OVERLAP for name in ("fedfft", "feddylora", "jacobian")},
    "mpi-3": {"mpi-3": {}, "mpi-3-static": STATIC, "mpi-3-overlap": OVERLAP, "validation-mpi-3": DYNAMIC | OVERLAP}
    | {"sampled-mpi-3": {}, "rowless-mpi-3": {}},
    "mpi-6": {"mpi-6": {}, "mpi-6-dynamic": DYNAMIC | OVERLAP},  # more ranks than clients
}
SAME = ("as users start it", *(name for runs in STARTS.values() for name in runs if name.split("-")[0] not in SPECIAL))


@pytest.fixture(scope="module")
def all_runs(flora: Flora, python: list[str], mpiexec: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs that were started in every way. A start plays all runs of its ranks, and they share nothing."""
    folder = tmp_path_factory.mktemp("runs")
    few = str(digits_file.write(folder / "few.h5", 300, NUM_IMAGES - 300))  # a fifth of the digits
    two_blocks = str(digits_file.write(folder / "two-blocks.h5", 300, 300))  # of pixels that are tested at once

    def options(name: str, more: dict[str, Any]) -> dict[str, Any]:
        special = SPECIAL.get(name.split("-")[0], SMALL)
        store = "none" if name in KEEP_NOTHING else str(folder / f"{name}-store")  # every one computes all features itself
        data = {"data.name": "hdf5", "data.path": few if special["rounds"] == 2 else two_blocks}
        return {"features.store": store} | data | special | more

    for start, runs in STARTS.items():
        backend, _, num_ranks = start.partition("-")
        under = {"alone": python, "gloo": forks.torchrun(2), "mpi": [*mpiexec, "-n", num_ranks, *python]}[backend]
        played = json.dumps({name: options(name, more) for name, more in runs.items()})
        command = [*under, str(ROOT / "tests" / "many_runs.py"), str(folder), "no", played]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
    settings = [f"{key}={value}" for key, value in options("as users start it", {}).items()]
    words = ["configs/quickstart.yaml", *(word for setting in settings for word in ("-s", setting))]
    done = flora(
        "run", *words, "--out", folder / "as users start it", under=[*mpiexec, "-n", "2"], afresh=True, OMP_NUM_THREADS="2"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def runs(all_runs: Path) -> dict[str, Path]:
    """The same experiment, started in every way."""
    return {name: all_runs / name for name in SAME}


def test_adapters_are_byte_identical(runs: dict[str, Path]) -> None:
    files = {name: (path / "adapter" / "adapter_model.safetensors").read_bytes() for name, path in runs.items()}
    assert len(files["alone"]) > 16_000
    assert [name for name, data in files.items() if data != files["alone"]] == []


def test_features_in_the_store_are_byte_identical(runs: dict[str, Path]) -> None:
    found = set()
    for name, path in runs.items():
        if name not in KEEP_NOTHING:
            (file,) = path.with_name(f"{name}-store").glob("features/*")
            values, _ = stores.read(file) or pytest.fail(f"{file} cannot be read")
            assert values.shape == (NUM_IMAGES, 128)
            found.add((file.stem, values.numpy().tobytes()))
    assert len(found) == 1


def test_rounds_are_the_same_whichever_clients_have_a_row(all_runs: Path) -> None:
    files = {
        name: hdf5file.read(all_runs / name)[1]
        for name in ("alone", "sampled-alone", "sampled-gloo", "sampled-mpi-3", "rowless-alone", "rowless-mpi-3")
    }
    expected = files["alone"]
    names = [name for name in expected["rounds"].dtype.names or () if not name.endswith("_seconds") and name != "collective_bytes"]
    for tables in files.values():
        for name in names:
            np.testing.assert_array_equal(tables["rounds"][name], expected["rounds"][name], name)
    clients = {name: tables["clients"][["round", "client", "train_loss"]].tolist() for name, tables in files.items()}
    assert clients["rowless-alone"] == clients["rowless-mpi-3"] == []
    assert len(clients["sampled-alone"]) == 4
    assert clients["sampled-alone"] == clients["sampled-gloo"] == clients["sampled-mpi-3"]
    assert set(clients["sampled-alone"]) < set(clients["alone"])


def test_what_clients_and_rounds_report_is_identical(runs: dict[str, Path]) -> None:
    def measured(path: Path) -> list[np.ndarray]:
        with h5py.File(path / "run.h5", swmr=True) as file:
            rounds, clients = file["rounds"][:], file["clients"][:]
        columns = [rounds[name] for name in ("test_accuracy", "train_loss", "num_examples", "uplink_bytes", "downlink_bytes")]
        return columns + [clients[name] for name in ("client", "num_examples", "num_steps", "train_loss", "update_norm", "weight")]

    expected = measured(runs["alone"])
    for path in runs.values():
        for mine, wanted in zip(measured(path), expected, strict=True):
            np.testing.assert_array_equal(mine, wanted)


@pytest.mark.parametrize(
    ("name", "backend", "launcher", "size"),
    [
        ("alone", "serial", "none", 1),
        ("gloo", "gloo", "torchrun", 2),
        ("mpi-3", "mpi", "mpich", 3),
        ("as users start it", "mpi", "mpich", 2),
    ],
)
def test_the_file_says_how_it_was_started(runs: dict[str, Path], name: str, backend: str, launcher: str, size: int) -> None:
    with h5py.File(runs[name] / "run.h5", swmr=True) as file:
        attributes = dict(file.attrs)
        assert (attributes["backend"], attributes["launcher"], attributes["world_size"]) == (backend, launcher, size)
        assert attributes["status"] == b"finished"
        assert len(file["topology"]) == size
        assert len(file["rounds"]) == 3
        assert len(file["ranks"]) == 3 * size


@pytest.mark.parametrize("name", ["mpi-6", "mpi-6-dynamic"])
def test_a_rank_without_clients_takes_part(runs: dict[str, Path], name: str) -> None:
    with h5py.File(runs[name] / "run.h5", swmr=True) as file:
        ranks = file["ranks"][:]
    per_rank = [int(ranks["num_clients"][(ranks["rank"] == rank) & (ranks["round"] == 1)][0]) for rank in range(6)]
    assert sum(per_rank) == 5
    assert 0 in per_rank


@pytest.mark.parametrize(("name", "num_groups"), [("alone", 1), ("mpi-1", 3), ("gloo", 5), ("mpi-3", 3), ("mpi-6", 5)])
def test_clients_were_in_different_groups(runs: dict[str, Path], name: str, num_groups: int) -> None:
    with h5py.File(runs[name] / "run.h5", swmr=True) as file:
        clients = file["clients"][:]
    assert len({(row["rank"], row["group"]) for row in clients if row["round"] == 1}) == num_groups


def test_sums_over_clients_and_ranks_equal_the_rounds(runs: dict[str, Path]) -> None:
    for path in runs.values():
        with h5py.File(path / "run.h5", swmr=True) as file:
            rounds, ranks, clients, payload = file["rounds"][:], file["ranks"][:], file["clients"][:], file.attrs["payload_bytes"]
        for row in rounds:
            mine, theirs = clients[clients["round"] == row["round"]], ranks[ranks["round"] == row["round"]]
            assert row["num_clients"] == len(mine) == theirs["num_clients"].sum()
            assert row["num_examples"] == mine["num_examples"].sum()
            assert row["uplink_bytes"] == mine["uplink_bytes"].sum() == len(mine) * payload
            assert row["downlink_bytes"] == mine["downlink_bytes"].sum()
            assert row["collective_bytes"] == theirs["collective_bytes"].sum()


def test_phases_add_up_to_the_round(runs: dict[str, Path]) -> None:
    with h5py.File(runs["as users start it"] / "run.h5", swmr=True) as file:
        rounds = file["rounds"][1:]
    phases = sum(rounds[f"{phase}_seconds"].sum() for phase in PHASES)
    assert phases == pytest.approx(rounds["round_seconds"].sum(), rel=0.02)


def test_validation_accuracy_is_identical(all_runs: Path) -> None:
    """Tested at once by one rank, and during the next round by the ranks that have time."""
    alone, together = (hdf5file.read(all_runs / f"validation-{name}")[1]["rounds"] for name in ("alone", "mpi-3"))
    assert np.isfinite(alone["validation_accuracy"]).all()
    for name in ("test_accuracy", "validation_accuracy", "train_loss"):
        np.testing.assert_array_equal(alone[name], together[name], name)


@pytest.mark.parametrize("special", ["fedfft", "feddylora", "jacobian"])
def test_pixels_clients_of_several_ranks_and_one_jacobian_give_the_same_bits_too(special: str, all_runs: Path) -> None:
    """And the same accuracies, although ranks share two blocks of pixels during the next round, or rows of the Jacobian."""
    folders = [all_runs / f"{special}-{name}" for name in ("alone", "mpi-2")]
    assert adapter(folders[0]) == adapter(folders[1])
    measured = [hdf5file.read(folder)[1]["rounds"] for folder in folders]
    assert measured[0]["test_accuracy"].tolist() == measured[1]["test_accuracy"].tolist()
    for rounds in measured:  # waiting for rows of a Jacobian is no training; another process may come between two rounds
        phases = sum(rounds[f"{phase}_seconds"][1:].sum() for phase in PHASES)
        assert phases == pytest.approx(rounds["round_seconds"][1:].sum(), rel=0.03, abs=0.005)
