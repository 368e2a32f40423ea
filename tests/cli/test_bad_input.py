"""Each mistake is answered once, whatever the number of ranks, in a sentence that names the cure; nothing is written."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flora_hpc.cli import main
from tests.conftest import ROOT

Flora = Callable[..., subprocess.CompletedProcess[str]]

MISTAKES = {
    "unknown key": (["client.local_epoch=2"], "client.local_epoch: unknown key; did you mean client.epochs?"),
    "wrong type": (["client.lr=fast"], "client.lr: must be a number, not 'fast'"),
    "negative rounds": (["rounds=-1"], "rounds: must be at least 0, not -1"),
    "unknown backend": (["comm.backend=mppi"], "comm.backend: no backend 'mppi'; did you mean 'mpi'?"),
    "missing file": (["data.name=hdf5", "data.path=nowhere.h5"], "data.path: there is no file nowhere.h5"),
    "not HDF5": (["data.name=hdf5", "data.path=README.md"], "data.path: README.md is not an HDF5 file"),
    "more clients than examples": (
        ["partition.num_clients=5000"],
        "5000 clients for 1438 training examples leaves some without any",
    ),
    "an option that the method does not have": (
        ["method.ranks=3"],
        "method.ranks: is no option of flora, but of feddylora; did you mean method.rank?",
    ),
    "no such method": (["method.name=fedfff"], "method.name: no method 'fedfff'; did you mean 'fedfft'?"),
    "rank larger than the layer": (["method.rank=200"], "method.rank: 200 is larger than transformer.resblocks.0.attn.out_proj"),
    "no such target": (["method.targets=[text.qproj]"], "method.targets.0: must be "),
    "a target that this model lacks": (
        ["model.name=RN50", "model.pretrained=none", "method.targets=[image.q_proj]"],
        "method.targets: RN50 has no image.q_proj",
    ),
    "a model that does not exist": (["model.name=ViT-B-33"], "model.name: no model 'ViT-B-33'; did you mean 'ViT-B-32'?"),
    "weights of another model": (
        ["model.name=ViT-B-32", "model.pretrained=flora_hpc/clip/flora_tiny/open_clip_model.safetensors"],
        "flora_hpc/clip/flora_tiny holds another architecture than ViT-B-32: its embed_dim is 128, not 512",
    ),
    "several at once": (["rounds=x", "method.rank=0", "partition.beta=-1"], "rounds: must be a whole number, not 'x'"),
}


def check(result: subprocess.CompletedProcess[str], message: str, out: Path) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stderr.count(message) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert not out.exists()


def flags(mistake: str) -> list[str]:
    return [word for override in MISTAKES[mistake][0] for word in ("-s", override)]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_alone(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "configs/quickstart.yaml", *flags(mistake), "--out", str(tmp_path / "out")]
    code, error = call(arguments, monkeypatch, capsys)
    assert code == 2
    assert error.count(MISTAKES[mistake][1]) == 1
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_several_mistakes_are_told_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _, error = call(["run", "configs/quickstart.yaml", *flags("several at once")], monkeypatch, capsys)
    assert [line.split(":")[-2].split()[-1] for line in error.strip().splitlines()] == ["method.rank", "partition.beta", "rounds"]


def test_a_config_that_does_not_exist(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = call(["run", "configs/quickstrat.yaml"], monkeypatch, capsys)
    assert (code, error.count("there is no such file; did you mean 'quickstart.yaml'?")) == (2, 1)


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Exit code and standard error of the command line, in this process."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["flora-hpc", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        main()
    return exit_info.value.code, capsys.readouterr().err


@pytest.mark.mpi
@pytest.mark.parametrize("mistake", ["unknown key", "not HDF5"])
def test_under_mpiexec(mistake: str, flora: Flora, mpiexec: list[str], tmp_path: Path) -> None:
    """One mistake that is found before the ranks know each other, and one that is found after."""
    out = tmp_path / "out"
    result = flora("run", "configs/quickstart.yaml", *flags(mistake), "--out", out, under=[*mpiexec, "-n", "2"])
    check(result, MISTAKES[mistake][1], out)


@pytest.mark.mpi
@pytest.mark.parametrize("backend", ["auto", "gloo"])
def test_a_config_that_only_one_rank_cannot_read(backend: str, mpiexec: list[str], python: list[str], tmp_path: Path) -> None:
    """As on a node whose file system is not mounted: the other ranks must not wait for that one for ever."""
    config = tmp_path / "quickstart.yaml"
    config.write_text((ROOT / "configs/quickstart.yaml").read_text())
    program = [*python, "-m", "flora_hpc", "run"]
    program += ["-s", f"comm.backend={backend}"]
    command = [*mpiexec, "-n", "1", *program, str(config), ":", "-n", "1", *program, str(tmp_path / "gone.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    check(result, "gone.yaml: there is no such file", tmp_path / "runs")
    assert "(on rank 1 of 2)" in result.stderr


@pytest.mark.mpi
@pytest.mark.parametrize("backend", ["mpi", "gloo"])
def test_a_config_that_differs_on_one_rank(backend: str, mpiexec: list[str], python: list[str], tmp_path: Path) -> None:
    """A stale copy on one node would train other groups there, and no later check could see it."""
    text = (ROOT / "configs/quickstart.yaml").read_text()
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text(text.replace("epochs: 2", "epochs: 1"))
    program = [*python, "-m", "flora_hpc", "run", "-s", f"comm.backend={backend}", "--out", str(tmp_path / "out")]
    command = [*mpiexec, "-n", "1", *program, str(tmp_path / "a.yaml"), ":", "-n", "1", *program, str(tmp_path / "b.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    check(result, "rank 1 of 2 has another configuration than rank 0; give every rank the same files", tmp_path / "out")


@pytest.mark.mpi
def test_a_forgotten_argument(flora: Flora, mpiexec: list[str], tmp_path: Path) -> None:
    check(flora("run", under=[*mpiexec, "-n", "2"]), "run: which configuration? for example quickstart", tmp_path / "out")


@pytest.mark.mpi
def test_an_output_directory_that_already_holds_a_run(flora: Flora, mpiexec: list[str], tmp_path: Path) -> None:
    (tmp_path / "run.h5").write_bytes(b"a run")
    result = flora("run", "configs/quickstart.yaml", "--out", tmp_path, under=[*mpiexec, "-n", "2"])
    check(result, "already holds a run; choose another directory, remove this one, or go on with --resume", tmp_path / "adapter")
    assert (tmp_path / "run.h5").read_bytes() == b"a run"


@pytest.mark.mpi
def test_a_backend_that_does_not_see_the_launchers_world(flora: Flora, mpiexec: list[str], tmp_path: Path) -> None:
    result = flora(
        "run", "configs/quickstart.yaml", "-s", "comm.backend=serial", "--out", tmp_path / "out", under=[*mpiexec, "-n", "2"]
    )
    check(result, "mpich started 2 processes, but backend 'serial' sees a world of 1", tmp_path / "out")


def without(tmp_path: Path, environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flora_hpc", "run", "configs/quickstart.yaml", "-s", "comm.backend=mpi", *arguments]
    command += ["--out", str(tmp_path / "out")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | environ)


def test_backend_mpi_without_an_mpi_library(tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    result = without(tmp_path, {"MPI4PY_LIBMPI": "/nowhere/libmpi.so"})
    check(result, "mpi4py found no MPI library", tmp_path / "out")
    assert "pip install 'flora-hpc[mpich]'" in result.stderr


def test_backend_mpi_without_mpi4py(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['mpi4py'] = None")
    result = without(tmp_path, {"PYTHONPATH": str(tmp_path)})
    check(result, "backend 'mpi' needs mpi4py, which is not installed", tmp_path / "out")


def test_a_directory_that_cannot_be_written(flora: Flora, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run"
    check(flora("run", "configs/quickstart.yaml", "-s", "rounds=1", "--out", out), "cannot be written", out)
