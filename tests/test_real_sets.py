"""Real image sets, where a folder of them is named: FLORA_HPC_TEST_DATA=/data pytest tests/test_real_sets.py."""

import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from flora_hpc.records import hdf5file

FILES = sorted(Path(os.environ.get("FLORA_HPC_TEST_DATA", "/nonexistent")).glob("*.h5"))

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(not FILES, reason="FLORA_HPC_TEST_DATA names no folder of .h5 files")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_flora_learns_something_on_two_ranks_and_a_second_run_computes_no_feature(
    flora: Callable[..., CompletedProcess[str]], mpiexec: list[str], path: Path, tmp_path: Path
) -> None:
    settings = ["-s", f"data.path={path}", "-s", "rounds=2", "-s", f"features.store={tmp_path / 'store'}"]
    runs = []
    for name in ("first", "second"):
        result = flora("run", "configs/hdf5.yaml", *settings, "--out", tmp_path / name, under=[*mpiexec, "-n", "2"], timeout=600)
        assert result.returncode == 0, result.stderr
        runs.append(hdf5file.read(tmp_path / name))
    (first, tables), (second, _) = runs
    assert (first["status"], first["world_size"]) == ("finished", 2)
    assert first["num_features_computed"] > 0
    assert second["num_features_computed"] == 0
    assert second["setup_seconds"] < first["setup_seconds"]
    assert tables["rounds"]["test_accuracy"][-1] > 0
    adapters = [(tmp_path / name / "adapter/adapter_model.safetensors").read_bytes() for name in ("first", "second")]
    assert adapters[0] == adapters[1]
