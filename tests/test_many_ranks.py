"""Many more ranks than cores: the same bits as one rank. `make test-all` plays it, with FLORA_HPC_RANKS ranks."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flora_hpc.records import hdf5file
from tests import forks
from tests.conftest import ROOT

NUM_RANKS = int(os.environ.get("FLORA_HPC_RANKS", "0"))
SETTINGS: dict[str, Any] = {
    "rounds": 3,
    "partition": {"name": "iid", "num_clients": 10_000, "examples_per_client": 4},
    "client.epochs": 1,
    "client.batch_size": 4,
    "records.clients": "sample 100",
}


@pytest.mark.mpi
@pytest.mark.parametrize("backend", ["mpi", "gloo"])
@pytest.mark.skipif(not NUM_RANKS, reason="FLORA_HPC_RANKS says how many ranks to start")
def test_ten_thousand_clients_on_many_ranks_give_the_bits_of_one(
    backend: str, mpiexec: list[str], python: list[str], tmp_path: Path
) -> None:
    many_ranks = forks.torchrun(NUM_RANKS) if backend == "gloo" else [*mpiexec, "-n", str(NUM_RANKS), *python]
    for num_ranks, under in ((1, python), (NUM_RANKS, many_ranks)):
        played = json.dumps({f"on-{num_ranks}": SETTINGS})
        done = subprocess.run([*under, str(ROOT / "tests" / "many_runs.py"), str(tmp_path), "no", played], cwd=ROOT, timeout=1800)
        assert done.returncode == 0
    (_, one), (_, many) = (hdf5file.read(tmp_path / f"on-{num_ranks}") for num_ranks in (1, NUM_RANKS))
    adapters = {(tmp_path / f"on-{n}" / "adapter" / "adapter_model.safetensors").read_bytes() for n in (1, NUM_RANKS)}
    assert len(adapters) == 1
    assert (many["ranks"]["num_clients"][many["ranks"]["round"] > 0] > 0).all(), "every rank has work"
    for name in ("num_clients", "train_loss", "test_accuracy", "uplink_bytes"):
        np.testing.assert_array_equal(many["rounds"][name], one["rounds"][name], name)
    for name in ("client", "train_loss", "update_norm"):
        np.testing.assert_array_equal(many["clients"][name], one["clients"][name], name)
