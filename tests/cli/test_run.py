"""`flora-hpc run` and the owner of its directory."""

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flora_hpc import loop
from flora_hpc.cli import app
from flora_hpc.cli.run import LOADING
from flora_hpc.errors import UserError
from flora_hpc.owner import claim, living
from flora_hpc.records import hdf5file
from tests.cli.test_bad_input import call
from tests.conftest import ROOT

Flora = Callable[..., subprocess.CompletedProcess[str]]
HEAVY = """
import atexit, gc, sys
atexit.register(lambda: print(gc.get_freeze_count() > 0))
from flora_hpc.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
packages = "peft transformers accelerate timm sklearn scipy pandas pyarrow matplotlib plotly sympy triton mpi4py"
modules = "torch._dynamo torch._inductor torchvision.models torchvision.datasets"
print(*(name for name in f"{packages} {modules}".split() if name in sys.modules))
"""
BROKEN_OFF = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() > 0))
from flora_hpc import cli

def app(**_):
    raise SystemExit(143)  # as a signal does, and a rank that cannot connect

cli.app = app
cli.main()
"""


@pytest.fixture
def words(squares: Path, tmp_path: Path) -> list[str]:
    data = [f"data={{name: hdf5, path: {squares}}}", "partition={name: iid, num_clients: 2}", "rounds=3"]
    flags = [word for setting in data for word in ("-s", setting)]
    return ["run", str(ROOT / "configs/quickstart.yaml"), *flags, "--out", str(tmp_path / "run")]


WITHOUT_TORCH = "import sys; sys.modules |= {'torch': None, 'open_clip': None}; from flora_hpc.cli import main; main()"


@pytest.mark.parametrize(("view", "said"), [("--view=plain", f"{LOADING}\n"), ("--view=live", f"{LOADING}\n"), ("--quiet", "")])
def test_the_first_line_comes_before_the_import_of_torch(view: str, said: str, words: list[str]) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, *words, view, "-s", "comm.backend=serial"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "import of torch halted" in ended.stderr
    assert ended.stdout == said


@pytest.mark.mpi
def test_rank_0_alone_says_the_first_line(words: list[str], flora: Flora, mpiexec: list[str]) -> None:
    ended = flora(*words, "-s", "rounds=1", under=[*mpiexec, "-n", "2"])
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(LOADING) == 1
    assert ended.stdout.startswith(LOADING)


def own(out: Path, number: int, **more: object) -> None:
    out.mkdir(exist_ok=True)
    owner = replace(living.this_process(), host="node7", **more)  # type: ignore[arg-type]
    claim.path(out, number).write_text(json.dumps(asdict(owner)))


def test_no_end_of_a_process_looks_for_garbage() -> None:
    """It took longer than all else of a run's end."""
    ended = subprocess.run([sys.executable, "-c", BROKEN_OFF], capture_output=True, text=True, cwd=ROOT)
    assert (ended.returncode, ended.stdout) == (143, "True\n"), ended.stderr


def test_a_process_that_goes_on_looks_for_garbage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["run", "--no-such-option"], monkeypatch, capsys)[0] == 2
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["anew", "resume"])
def test_a_living_run_is_left_alone(
    resume: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    own(out, 4, job="12")
    code, error = call([*words, *resume], monkeypatch, capsys)
    assert code == 2
    assert error.startswith(f"flora-hpc: --out {out}: belongs to a run that goes on: process ")
    assert "on host node7, Slurm job 12, last sign of life " in error
    assert error.endswith(" s ago; wait for its end, stop it (scancel 12), or choose another directory\n")
    assert [file.name for file in out.iterdir()] == ["owner-000004.json"]


def test_a_dead_one_is_taken_over(words: list[str], tmp_path: Path, invoke: Callable[..., str]) -> None:
    own(tmp_path / "run", 1, started="1")
    (tmp_path / "run" / "config.yaml").touch()
    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, UserError)
    assert "takes over" not in refused.stdout, "nothing is taken over"
    (tmp_path / "run" / "config.yaml").unlink()
    said = invoke(*words, "--resume")
    assert f"note: takes over {tmp_path / 'run'} from process " in said
    assert claim.read(tmp_path / "run", 2).ended
    assert claim.newest(tmp_path / "run") == 2
    assert "takes over" not in invoke(*words, "--resume")


def test_an_owner_that_finds_another_one_writes_no_more(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when it was suspended for so long that another one took over."""
    out, play = tmp_path / "run", loop.play

    def suspended(setup, site, state, number):  # type: ignore[no-untyped-def]
        if number == 2:
            own(out, 2)
            monkeypatch.setattr(claim, "HEARTBEAT_SECONDS", 0)
        return play(setup, site, state, number)

    monkeypatch.setattr(loop, "play", suspended)
    code, error = call(words, monkeypatch, capsys)
    assert (code, error.count("now belongs to process ")) == (2, 1), error
    assert hdf5file.read(out)[1]["rounds"]["round"].tolist() in ([0], [0, 1])
    assert not (out / "adapter").exists()
    assert "round-000002.safetensors" not in [file.name for file in (out / "checkpoint").iterdir()]
    assert not claim.read(out, 2).ended, "it is the other one's"


def test_a_run_loads_no_package_that_it_does_without(tmp_path: Path) -> None:
    """Each takes tenths of a second or seconds, at the start of every rank or at its end."""
    run = ["run", str(ROOT / "configs/quickstart.yaml"), "-s", "rounds=1", "-s", "comm.backend=serial"]
    command = [sys.executable, "-c", HEAVY, *run, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    loaded, frozen = done.stdout.splitlines()[-2:]
    assert loaded == ""
    assert frozen == "True", "Python looks for garbage in all of PyTorch before the process ends"
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
