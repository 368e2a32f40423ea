"""Any number of ranks and any backend give the same bits: the promise that lets results be compared across clusters."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from flora_hpc.data import store as stores
from flora_hpc.records import hdf5file
from flora_hpc.records.views import PHASES
from tests import digits_file, forks
from tests.conftest import ROOT

pytestmark = pytest.mark.mpi

Flora = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ["-s", "rounds=2", "-s", "partition.num_clients=5"]

NUM_IMAGES = 403
KEEP_NOTHING = ("mpi-1", "mpi-3")
DYNAMIC, OVERLAP = "cohort.assignment=dynamic", "evaluate.overlap=true"
OTHERWISE = {  # what changes where and when work is done, and no bit of it
    "gloo-2-dynamic": [DYNAMIC],
    "mpi-1-dynamic": [DYNAMIC, OVERLAP],
    "mpi-2-dynamic": [DYNAMIC],
    "mpi-3-static": ["cohort.assignment=static"],
    "mpi-3-overlap": [OVERLAP],
    "mpi-6-dynamic": [DYNAMIC, OVERLAP],
    "mpi-1": ["client.group_size=2"],  # 3 groups; alone, all five clients are one
    "gloo": ["client.group_size=1"],
}


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fifth of the digits."""
    return digits_file.write(tmp_path_factory.mktemp("digits") / "few.h5", 300, NUM_IMAGES - 300)


@pytest.fixture(scope="module")
def runs(few_digits: Path, flora: Flora, mpiexec: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same experiment, started in every way, on more ranks than clients, too."""
    ways = {"alone": None, "gloo": "torchrun"} | {f"mpi-{n}": n for n in (1, 2, 3, 5, 6)}
    ways |= {name: "torchrun" if name.startswith("gloo") else int(name[4]) for name in OTHERWISE}
    folder = tmp_path_factory.mktemp("runs")
    for name, way in ways.items():
        out = folder / name
        store = "none" if name in KEEP_NOTHING else str(folder / f"{name}-store")  # every one computes all features itself
        settings = [f"features.store={store}", f"data={{name: hdf5, path: {few_digits}}}", *OTHERWISE.get(name, [])]
        special = [word for setting in settings for word in ("-s", setting)]
        arguments = ["run", "configs/quickstart.yaml", *SMALL, *special, "--out", str(out)]
        if way == "torchrun":
            command = [*forks.torchrun(2), "-m", "flora_hpc", *arguments]
            result = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
        elif way is None:
            result = flora(*arguments, OMP_NUM_THREADS="2")
        else:
            result = flora(*arguments, under=[*mpiexec, "-n", str(way)], afresh=name == "mpi-3")
        assert result.returncode == 0, result.stdout + result.stderr
    return {name: folder / name for name in ways}


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
    [("alone", "serial", "none", 1), ("gloo", "gloo", "torchrun", 2), ("mpi-3", "mpi", "mpich", 3)],
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


@pytest.mark.parametrize(("name", "num_groups"), [("alone", 1), ("mpi-1", 3), ("gloo", 5), ("mpi-3", 3), ("mpi-5", 5)])
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
    with h5py.File(runs["mpi-2"] / "run.h5", swmr=True) as file:
        rounds = file["rounds"][1:]
    phases = sum(rounds[f"{phase}_seconds"].sum() for phase in PHASES)
    assert phases == pytest.approx(rounds["round_seconds"].sum(), rel=0.02)


def test_validation_accuracy_is_identical(few_digits: Path, flora: Flora, mpiexec: list[str], tmp_path: Path) -> None:
    """Tested at once by one rank, and during the next round by the ranks that have time."""
    data = ["-s", f"data={{name: hdf5, path: {few_digits}, validation_fraction: 0.2}}"]
    for name, under, more in [("alone", None, []), ("mpi-3", [*mpiexec, "-n", "3"], ["-s", DYNAMIC, "-s", OVERLAP])]:
        result = flora("run", "configs/quickstart.yaml", *SMALL, *data, *more, "--out", tmp_path / name, under=under)
        assert result.returncode == 0, result.stdout + result.stderr
    alone, together = (hdf5file.read(tmp_path / name)[1]["rounds"] for name in ("alone", "mpi-3"))
    assert np.isfinite(alone["validation_accuracy"]).all()
    for name in ("test_accuracy", "validation_accuracy", "train_loss"):
        np.testing.assert_array_equal(alone[name], together[name], name)


@pytest.mark.parametrize("special", ["method.name=fedfft", "method.name=feddylora", "client.first_step=jacobian"])
def test_pixels_clients_of_several_ranks_and_one_jacobian_give_the_same_bits_too(
    flora: Flora, mpiexec: list[str], tmp_path: Path, special: str
) -> None:
    """And the same accuracies, although ranks share two blocks of pixels during the next round, or rows of the Jacobian."""
    few = ["-s", special, "-s", "rounds=1", "-s", "partition.num_clients=20", "-s", "cohort.size=3"]
    idle = ["-s", DYNAMIC, "-s", OVERLAP]
    for name, under, more in [("alone", None, []), ("mpi-2", [*mpiexec, "-n", "2"], idle)]:
        result = flora("run", "configs/quickstart.yaml", *few, *more, "--out", tmp_path / name, under=under)
        assert result.returncode == 0, result.stdout + result.stderr
    alone, together = (sorted((tmp_path / name / "adapter").glob("*.safetensors")) for name in ("alone", "mpi-2"))
    assert len(alone) == 1
    assert alone[0].read_bytes() == together[0].read_bytes()
    measured = [hdf5file.read(tmp_path / name)[1]["rounds"] for name in ("alone", "mpi-2")]
    assert measured[0]["test_accuracy"].tolist() == measured[1]["test_accuracy"].tolist()
    for rounds in measured:  # waiting for rows of a Jacobian is no training
        phases = sum(rounds[f"{phase}_seconds"][1:].sum() for phase in PHASES)
        assert phases == pytest.approx(rounds["round_seconds"][1:].sum(), rel=0.03)
