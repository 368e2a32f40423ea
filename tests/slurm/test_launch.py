"""Real srun on two nodes: every way to launch, and every wrong one."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flora_hpc.comm import mpilibrary

pytestmark = pytest.mark.slurm

Srun = Callable[..., subprocess.CompletedProcess[str]]
FLORA = [sys.executable, "-m", "flora_hpc"]
TWO_BY_TWO = ["-N", "2", "-n", "4", "--ntasks-per-node", "2", "--kill-on-bad-exit=1"]
SMALL = ["-s", "rounds=2", "-s", "partition.num_clients=5", "-s", "client.group_size=2"]


@pytest.fixture(scope="session")
def library() -> mpilibrary.Library:
    pytest.importorskip("mpi4py")
    return mpilibrary.loaded()


def right(library: mpilibrary.Library) -> str:
    return f"--mpi={mpilibrary.SRUN_FLAG[library.usual]}"


def test_gloo_and_mpi_on_two_nodes_give_the_bits_of_one_process(srun: Srun, library: mpilibrary.Library, tmp_path: Path) -> None:
    ways = {
        "alone": ["-N", "1", "-n", "1", "--mpi=none"],
        "gloo": [*TWO_BY_TWO, "--mpi=none"],
        "mpi": [*TWO_BY_TWO, right(library)],
    }
    for name, how in ways.items():
        backend = [] if name == "alone" else ["-s", f"comm.backend={name}"]
        store = f"features.store={tmp_path / name}-store"
        out = tmp_path / name
        result = srun(*how, *FLORA, "run", "configs/quickstart.yaml", *SMALL, *backend, "-s", store, "--out", out)
        assert result.returncode == 0, f"{name}: {result.stdout}{result.stderr}"
    adapters = {name: (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ways}
    assert adapters["gloo"] == adapters["alone"]
    assert adapters["mpi"] == adapters["alone"]


def test_ranks_on_other_nodes_reach_the_counters_of_rank_0(srun: Srun, tmp_path: Path) -> None:
    idle = ["-s", "cohort.assignment=dynamic", "-s", "comm.backend=gloo"]
    result = srun(
        "-N", 2, "-n", 2, "--mpi=none", *FLORA, "run", "configs/quickstart.yaml", *SMALL, *idle, "--out", tmp_path / "out"
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("gpus", "taken"),
    [
        (["--gpus-per-node=2"], {"cuda:0 by CUDA_VISIBLE_DEVICES=0,1": 2, "cuda:1 by CUDA_VISIBLE_DEVICES=0,1": 2}),
        (["--gpus-per-task=1"], {"cuda:0 by CUDA_VISIBLE_DEVICES=0,": 2, "cuda:0 by CUDA_VISIBLE_DEVICES=1,": 2}),
        (["--gpus-per-node=1"], {"cuda:0 by CUDA_VISIBLE_DEVICES=": 4}),
        ([], {"by CUDA_VISIBLE_DEVICES": 0}),
    ],
    ids=["per node", "per task", "more ranks than GPUs", "none"],
)
def test_doctor_names_each_ranks_gpu(srun: Srun, gpus: list[str], taken: dict[str, int]) -> None:
    if torch.cuda.device_count():
        pytest.skip("the testbed's GPUs are fake, those of this machine are not")
    result = srun(*TWO_BY_TWO, *gpus, "--mpi=none", *FLORA, "doctor", "--backend", "gloo", env={"COLUMNS": "260"})
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 ranks, backend gloo" in result.stdout
    assert {text: result.stdout.count(text) for text in taken} == taken
    assert ("a run computes on the CPU" in result.stdout) == bool(gpus)


@pytest.mark.parametrize("kind", ["none", "pmi2", "pmix"])
def test_a_wrong_mpi_is_answered_with_the_right_one(srun: Srun, library: mpilibrary.Library, kind: str) -> None:
    if f"--mpi={kind}" == right(library):
        pytest.skip("this is the right one")
    result = srun(*TWO_BY_TWO, f"--mpi={kind}", *FLORA, "doctor", timeout=120)
    assert result.returncode != 0, result.stdout + result.stderr  # srun tells the signal that ended the last rank
    assert result.stderr.count(f"srun started 4 processes, but {library.name}") == 1
    assert f"use srun {right(library)}, or set comm.backend: gloo" in result.stderr


def test_doctor_tells_the_place_of_every_rank(srun: Srun, library: mpilibrary.Library) -> None:
    result = srun(*TWO_BY_TWO, right(library), *FLORA, "doctor", env={"COLUMNS": "200"})
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("a collective over all ranks works") == 1
    for rank in range(4):
        assert f"SLURM_PROCID={rank}, SLURM_STEP_NUM_TASKS=4, SLURM_LOCALID={rank % 2}" in result.stdout
    assert result.stdout.count(library.name) == 5
