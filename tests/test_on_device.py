"""What a GPU computes is what a CPU computes, but for rounding. Without a GPU, the same tests compare two runs on the CPU."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flora_hpc import Run, plugins
from flora_hpc import run as play
from flora_hpc.bench import step as part
from tests.conftest import ROOT
from tests.same_runs import adapter

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = [pytest.param("cpu", marks=pytest.mark.long), pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]
SMALL = {"rounds": 2, "client.epochs": 1, "partition.num_clients": 5, "features.store": "none"}
METHODS = [name for name in plugins.members("methods") if name != "zeroshot"]

pytestmark = pytest.mark.parametrize("device", DEVICES)


def played(out: Path, device: str, **more: object) -> Run:
    return play(QUICKSTART, out=out, signals=False, **(SMALL | {"comm.device": device} | more))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of a learning rate that does not suit the method
@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_there_what_it_learns_on_a_cpu(device: str, method: str, tmp_path: Path) -> None:
    there, here = (played(tmp_path / out, name, **{"method.name": method}) for out, name in (("there", device), ("here", "cpu")))
    assert str(there.topology["device"][0]).startswith(device)
    np.testing.assert_allclose(there.rounds["train_loss"][1:], here.rounds["train_loss"][1:], rtol=1e-3)
    np.testing.assert_allclose(there.rounds["test_accuracy"], here.rounds["test_accuracy"], atol=0.02)
    np.testing.assert_allclose(there.clients["update_norm"], here.clients["update_norm"], rtol=0.02)


@pytest.mark.parametrize("first_step", ["each", "jacobian"])
def test_the_same_run_has_the_same_bits_again(device: str, first_step: str, tmp_path: Path) -> None:
    if device == "cuda" and first_step == "jacobian":
        pytest.skip("a Jacobian is for CPUs so far")
    for name in ("first", "again"):
        played(tmp_path / name, device, **{"client.first_step": first_step})
    assert adapter(tmp_path / "first") == adapter(tmp_path / "again")


@pytest.mark.mpi
def test_two_ranks_on_one_device_have_the_bits_of_one(
    device: str, flora: Callable[..., subprocess.CompletedProcess[str]], mpiexec: list[str], tmp_path: Path
) -> None:
    played(tmp_path / "one", device)
    words = [word for key, value in (SMALL | {"comm.device": device}).items() for word in ("-s", f"{key}={value}")]
    ended = flora("run", QUICKSTART, *words, "--out", tmp_path / "two", under=[*mpiexec, "-n", "2"])
    assert ended.returncode == 0, ended.stderr
    assert adapter(tmp_path / "one") == adapter(tmp_path / "two")


def test_a_fast_step_has_the_gradients_of_a_plain_one(device: str) -> None:
    task = part.Task("flora-tiny", "flora", classes=5, batch_size=8, precision="fp32", clients=4, steps=1, repeats=1, device=device)
    assert part.measure(task)["grad_rel_err"] < 1e-4
