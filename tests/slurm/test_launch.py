"""Real srun on two nodes: every way to launch, and every wrong one."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import flora_hpc
from flora_hpc.comm import mpilibrary

pytestmark = pytest.mark.slurm

Srun = Callable[..., subprocess.CompletedProcess[str]]
FLORA = [sys.executable, "-m", "flora_hpc"]
TWO_BY_TWO = ["-N", "2", "-n", "4", "--ntasks-per-node", "2", "--kill-on-bad-exit=1"]
TORCHRUN = f"""first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec {sys.executable} -m torch.distributed.run --nnodes=2 --nproc-per-node=2 --node-rank="$SLURM_NODEID" \\
    --master-addr="$first" --master-port=29533 -m flora_hpc "$@" """
SMALL = ["-s", "rounds=2", "-s", "partition.num_clients=5", "-s", "client.group_size=2"]


@pytest.fixture(scope="session")
def library() -> mpilibrary.Library:
    pytest.importorskip("mpi4py")
    return mpilibrary.loaded()


def right(library: mpilibrary.Library) -> str:
    return f"--mpi={mpilibrary.SRUN_FLAG[library.usual]}"


def test_every_launcher_on_two_nodes_gives_the_bits_of_one_process(
    srun: Srun, salloc: Srun, library: mpilibrary.Library, mpiexec: list[str], tmp_path: Path
) -> None:
    ways = {
        "alone": (srun, ["-N", 1, "-n", 1, "--mpi=none", *FLORA], "serial"),
        "gloo": (srun, [*TWO_BY_TWO, "--mpi=none", *FLORA], "gloo"),
        "mpi": (srun, [*TWO_BY_TWO, right(library), *FLORA], "mpi"),
        "mpiexec": (salloc, ["-N", 2, "-n", 4, "--ntasks-per-node", 2, *mpiexec, "-n", 4, *FLORA], "mpi"),
        "torchrun": (srun, ["-N", 2, "-n", 2, "--mpi=none", "bash", "-c", TORCHRUN, "torchrun"], "gloo"),
    }
    for name, (start, how, backend) in ways.items():
        where = ["-s", f"comm.backend={backend}", "-s", f"features.store={tmp_path / name}-store", "--out", tmp_path / name]
        result = start(*how, "run", "configs/quickstart.yaml", *SMALL, *where)
        assert result.returncode == 0, f"{name}: {result.stdout}{result.stderr}"
        run = flora_hpc.open_run(tmp_path / name)
        assert (run.attributes["backend"], len(run.topology)) == (backend, 1 if name == "alone" else 4), name
        assert len(set(run.topology["host"])) == (1 if name == "alone" else 2), name
    adapters = {name: (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ways}
    assert [name for name in ways if adapters[name] != adapters["alone"]] == []


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
