import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import torch
from rich.console import Console
from rich.filesize import decimal
from safetensors.torch import save_file
from typer.testing import CliRunner

from flora_hpc.cli import app
from flora_hpc.cli._bench_page import remarks
from flora_hpc.cli.plan import facts_table
from flora_hpc.comm import devices
from flora_hpc.errors import UserError
from tests import forks
from tests.conftest import ROOT

Flora = Callable[..., subprocess.CompletedProcess[str]]


def plan(*arguments: str) -> str:
    result = CliRunner().invoke(
        app, ["plan", "configs/quickstart.yaml", *arguments], env={"COLUMNS": "120"}, catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.output


def test_plan_tells_payload_and_data_of_the_papers_setting_without_weights() -> None:
    text = plan("-s", "model.name=ViT-B-32", "-s", "model.pretrained=laion2b_s34b_b79k", "-s", "method.rank=2")
    assert "24,576 trained numbers" in text
    assert "98,304 bytes per update" in text
    assert "1,438 training and 359 test images" in text


def test_plan_says_what_of_the_weights_it_has_looked_at(tmp_path: Path) -> None:
    assert "names and shapes fit the model; values (NaN, zeros) are not looked at" in " ".join(plan().replace("│", "").split())
    lines = plan("-s", "model.name=ViT-B-32", "-s", "model.pretrained=laion2b_s34b_b79k").splitlines()
    assert "'laion2b_s34b_b79k' of open_clip: not looked at" in next(line for line in lines if "weights" in line)
    save_file({"ln_final.weight": torch.ones(512)}, tmp_path / "w.pt")  # the suffix is wrong, too
    with pytest.raises(UserError, match=r"w.pt does not fit the model: 301 tensors missing"):
        plan("-s", "model.name=ViT-B-32", "-s", f"model.pretrained={tmp_path / 'w.pt'}")


def test_brackets_in_names_and_captions_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"captions": "2, such as '[/b] first'", "weights": "/data/[red]new[/red]/w.pt", "data": "[link=x] and [/]"}
    Console(width=100).print(facts_table("plan of [/i][bold].yaml", rows))
    Console(width=100).print(remarks({"machine": "host [/b]"}))
    text = capsys.readouterr().out
    assert all(part in text for part in [*rows.values(), "plan of [/i][bold].yaml", "host [/b]"])


def test_plan_of_captions_with_brackets(squares: Path, tmp_path: Path) -> None:
    with h5py.File(squares, "r+") as file:
        file.attrs["class_names"] = json.dumps([f"[/b] shade {i}" for i in range(10)])
        file.attrs["name"] = "[/i] squares"
    text = " ".join(plan("-s", "data.name=hdf5", "-s", f"data.path={squares}").split())
    assert "[/b] shade 0" in text
    assert "[/i] squares: 10 training" in text


def test_plan_shares_clients_among_ranks() -> None:
    lines = [line for line in plan("--ranks", "3", "--gpus", "2").splitlines() if "cuda:" in line]
    assert [line.split("│")[2].strip() for line in lines] == ["cuda:0", "cuda:1", "cuda:0"]
    assert sum(int(line.split("│")[4]) for line in lines) == 10


def test_plan_tells_the_assignment() -> None:
    """Ten clients, each a group, on 3 ranks, in turn: 4, 3 and 3."""
    text = plan("--ranks", "3", "-s", "cohort.assignment=static", "-s", "client.group_size=1")
    assert "static: clients go to ranks in turn" in text
    assert [line.split("│")[3].strip() for line in text.splitlines() if "│ cpu │" in " ".join(line.split())] == ["4", "3", "3"]
    assert "dynamic: an idle rank takes" in plan("-s", "cohort.assignment=dynamic")


def test_plan_tells_what_ranks_send_of_a_jacobian() -> None:
    """Ten captions with 256 numbers each, by 2,048 trained ones of four bytes."""

    def said(*words: str) -> str:
        return " ".join(plan(*words).replace("│", " ").split())

    assert "allgather 21.0 MB a round (rows of a Jacobian" in said("-s", "client.first_step=jacobian", "--ranks", "2")
    assert "allgather" not in said("-s", "client.first_step=jacobian")
    assert "allgather" not in said("--ranks", "2")


def test_plan_says_how_large_groups_are_and_why() -> None:
    def said(*words: str) -> str:
        return " ".join(plan(*words).replace("│", " ").split())

    assert "1 of up to 10 clients in one batch of tensors, about" in said()
    assert "a round has no more clients" in said()
    assert "3 of up to 4 clients" in said("-s", "client.group_size=4")
    assert "as client.group_size says" in said("-s", "client.group_size=4")
    assert "warning" not in said("-s", "client.group_size=4")
    assert "4 of up to 3 clients" in said("--ranks", "4", "-s", "client.group_size=4")
    assert "each rank trains its clients in one" in said("--ranks", "4", "-s", "client.group_size=4")
    assert "a cohort is cut into about sixteen" in said("--gpus", "1")


@pytest.mark.parametrize(
    ("setting", "cure"),
    [("client.group_size=4", "lower client.group_size or"), ("client.group_size=1", "put fewer ranks on a node, or")],
)
def test_plan_warns_of_a_group_that_does_not_fit(setting: str, cure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "memory_per_core", lambda: 200_000)
    told = " ".join(plan("-s", setting).split())
    assert "half of this machine's memory for each core is 100.0 kB" in told
    assert cure in told


@pytest.mark.mpi
def test_doctor_sees_the_ranks_and_tries_a_collective(flora: Flora, mpiexec: list[str]) -> None:
    result = flora("doctor", under=[*mpiexec, "-n", "2"])
    assert result.returncode == 0, result.stderr
    assert "2 ranks, backend mpi" in result.stdout
    assert result.stdout.count("place taken from") == 1
    assert re.search(r"1 │ \S+ +│ +1 │ cpu .*│ +\d+ │ (MPICH|Open MPI) \d.*(PMI_RANK|OMPI_COMM_WORLD_RANK)=1,", result.stdout)
    assert result.stdout.count("a collective over all ranks works") == 1


@pytest.mark.mpi
def test_doctor_stops_where_launcher_and_backend_disagree(flora: Flora, mpiexec: list[str]) -> None:
    result = flora("doctor", "--backend", "serial", under=[*mpiexec, "-n", "2"])
    assert result.returncode == 2
    assert result.stderr.count("set comm.backend: auto") == 1


@pytest.mark.mpi
@pytest.mark.usefixtures("python")
def test_doctor_names_the_backend_that_torchrun_needs() -> None:
    command = [*forks.torchrun(2), "-m", "flora_hpc", "doctor", "--backend", "mpi"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.returncode != 0
    assert result.stderr.count("torchrun started 2 processes, but ") == 1
    assert "set comm.backend: gloo" in result.stderr


def test_doctor_tells_the_gpu_that_pytorch_does_not_see(flora: Flora, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.device_count():
        pytest.skip("there are GPUs here")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    result = flora("doctor")
    assert result.returncode == 0, result.stderr
    assert "cuda:0 by CUDA_VISIBLE_DEVICES=3, but PyTorch sees no GPU" in " ".join(result.stdout.replace("│", " ").split())
    assert "a run computes on the CPU" in result.stdout


def test_doctor_alone(flora: Flora) -> None:
    result = flora("doctor")
    assert result.returncode == 0, result.stderr
    assert "1 rank, backend serial" in result.stdout
    assert "no launcher's variables" in result.stdout
    assert "1 node\n" in re.sub(" +\n", "\n", result.stdout)
    assert decimal(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) in result.stdout


@pytest.mark.mpi
def test_doctor_for_programs_tells_every_rank(flora: Flora, mpiexec: list[str]) -> None:
    result = flora("doctor", "--json", under=[*mpiexec, "-n", "2"])
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["schema"], told["backend"]["name"], told["launcher"]["num_ranks"], told["problems"]) == (1, "mpi", 2, [])
    assert [rank["rank"] for rank in told["ranks"]] == [0, 1]
    for rank in told["ranks"]:
        assert rank["cores"] == sorted(os.sched_getaffinity(0))
        assert rank["node"]["processor"]
        assert rank["node"]["memory_bytes"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert rank["place"].startswith(("PMI_RANK=", "OMPI_COMM_WORLD_RANK="))
    assert told["collective_seconds"] > 0
    assert "ranks 0 and 1 of " in told["notes"][0], "which may use the same cores"


def test_a_wrong_backend_is_answered_with_the_right_one(flora: Flora) -> None:
    result = flora("doctor", "--backend", "mppi")
    assert result.returncode == 2
    assert "did you mean 'mpi'?" in result.stderr
