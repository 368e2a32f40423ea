"""Without extras most commands work, and the other commands name the extra to install."""

import json
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from flora_hpc import extras, open_run, plugins
from flora_hpc.data import fetch
from flora_hpc.data.datasets._catalog import CATALOG
from flora_hpc.errors import UserError
from tests.conftest import ROOT
from tests.data.miniatures import write

SCRIPT = Path(__file__).with_name("without_extras.py")
Start = Callable[..., subprocess.CompletedProcess[str]]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


@pytest.fixture(scope="module")
def start(python: list[str]) -> Start:
    """Run `flora-hpc words` where no package of an extra can be imported."""

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        command = [*python, str(SCRIPT), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT)

    return call


@pytest.fixture(scope="module")
def run(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made without extras; its data is `data.h5` beside it."""
    folder = tmp_path_factory.mktemp("without")
    squares(folder / "data.h5")
    settings = [f"data={{name: hdf5, path: {folder / 'data.h5'}}}", "partition={name: iid, num_clients: 2}", "rounds=2"]
    done = start("run", QUICKSTART, *(word for one in settings for word in ("-s", one)), "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def squares(path: Path) -> None:
    import h5py
    import numpy as np

    with h5py.File(path, "w") as file:
        for part in ("train", "test"):
            file[f"{part}/images"] = np.repeat(np.arange(10, dtype=np.uint8) * 25, 16 * 16 * 3).reshape(10, 16, 16, 3)
            file[f"{part}/labels"] = np.arange(10)
        file.attrs.update(class_names=json.dumps([f"shade {i}" for i in range(10)]), encoding="raw", name="squares")


@pytest.mark.parametrize(
    "words",
    [
        "show RUN",
        "show RUN --clients --csv",
        "show RUN --json",
        "watch RUN",
        "evaluate RUN",
        "export RUN --to open_clip --out RUN/open_clip",
        "export RUN --to peft --out RUN/peft",
        "run CONFIG --out RUN --resume",
        "plan CONFIG",
        "doctor",
        "list",
        "data list",
        "data inspect CONFIG",
        "data embed CONFIG",
        "data cache",
        "data pack CONFIG --out RUN/packed.h5",
        "slurm CONFIG",
        "bench comm --sizes 1KiB --repeats 1",
        "bench methods --model flora-tiny --methods flora --classes 3 --batch-size 2 --clients 2 --steps 1 --repeats 1",
    ],
)
def test_commands_that_need_no_extra(words: str, start: Start, run: Path) -> None:
    done = start(*words.replace("RUN", str(run)).replace("CONFIG", str(run / "config.yaml")).split())
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    ("words", "what", "package", "extra"),
    [
        ("report RUN", "report", "matplotlib and Jinja2", "report"),
        ("bench report", "bench report", "matplotlib and Jinja2", "report"),
        ("data inspect CONFIG --picture RUN/split.png", "a picture", "matplotlib", "report"),
        ("show RUN --clients --parquet RUN/clients.parquet", "--parquet", "pyarrow", "parquet"),
        ("run CONFIG --out RUN/tracked --track wandb", "--track wandb", "wandb", "wandb"),
        ("run CONFIG --out RUN/mpi -s comm.backend=mpi", "backend 'mpi'", "mpi4py", "mpich"),
        ("data fetch flowers102", "flowers102", "scipy", "mat"),
        ("export RUN --to transformers", "--to transformers", "peft", "peft"),
        ("export RUN --to transformers --merged", "--to transformers --merged", "transformers", "peft"),
        (
            "plan CONFIG -s model.name=roberta-ViT-B-32 -s model.pretrained=none",
            "model.name: roberta-ViT-B-32",
            "transformers",
            "peft",
        ),
        ("bench against", "bench against", "peft", "peft"),
        ("bench step --model flora-tiny", "bench step", "peft", "peft"),
    ],
)
def test_a_missing_extra_is_answered_with_what_installs_it(
    words: str, what: str, package: str, extra: str, start: Start, run: Path
) -> None:
    places = {"RUN": run, "CONFIG": run / "config.yaml"}
    done = start(*(re.sub("RUN|CONFIG", lambda name: str(places[name[0]]), word) for word in words.split()))
    are = "are" if " and " in package else "is"
    sentence = f"flora-hpc: {what} needs {package}, which {are} not installed: pip install 'flora-hpc[{extra}]'"
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(sentence)
    assert "Traceback" not in done.stderr


def test_a_frame_says_that_it_needs_pandas(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "installed", lambda package: package != "pandas")
    opened = open_run(run)
    sentence = (
        r"a frame of a run needs pandas, which is not installed: pip install 'flora-hpc\[study\]'; `Run\.tables\['rounds'\]` has "
    )
    with pytest.raises(UserError, match=sentence):
        opened.rounds  # noqa: B018
    with pytest.raises(UserError, match=r"'flora-hpc\[study\]'; `Run\.class_counts` has "):
        opened.split  # noqa: B018
    assert opened.class_counts is not None
    assert opened.columns("rounds")["round"].tolist() == [0, 1, 2]


def test_sets_with_files_of_matlab_need_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {name for name, facts in CATALOG.items() if facts.packages} == {"flowers102", "cars"}
    write("cars", tmp_path, monkeypatch)
    monkeypatch.setattr(extras, "installed", lambda package: False)
    member = plugins.member("datasets", "cars")
    with pytest.raises(UserError, match=r"^data.name: cars needs scipy, which is not installed: pip install 'flora-hpc\[mat\]'$"):
        member.build(member.Options(name="cars", root=tmp_path))
    with pytest.raises(UserError, match=r"^cars needs scipy"):
        fetch.fetch("cars", tmp_path)


def test_a_package_without_an_extra_is_installed_by_its_name() -> None:
    with pytest.raises(UserError, match=r"^x needs no_such_package, which is not installed: pip install no_such_package; or not$"):
        extras.need("x", "numpy", "no_such_package", otherwise="; or not")


def test_extras_bring_what_they_are_named_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    brought = {
        extra: {re.split(r"[<>=\[]", package)[0].lower() for package in packages}
        for extra, packages in project["optional-dependencies"].items()
    }
    for package, extra in extras.EXTRAS.items():
        name = extras.NAMES.get(package, package).lower()
        assert {name, f"{name}-skinny"} & brought[extra], package
    hard = {re.split(r"[<>=]", package)[0].lower() for package in project["dependencies"]}
    assert not hard & {extras.NAMES.get(package, package).lower() for package in extras.EXTRAS}
