"""Configurations that come with the package, by name, outside a clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from flora_hpc import bundled, configfile
from flora_hpc.errors import UserError
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_name_is_the_file_in_the_package() -> None:
    by_name, _ = configfile.load(Path("quickstart"))
    assert by_name == configfile.load(ROOT / "flora_hpc" / "configs" / "quickstart.yaml")[0]
    assert by_name.partition.num_clients == 10  # type: ignore[attr-defined]


def test_a_folder_s_name_is_its_setting_and_the_others_are_built_on_it() -> None:
    setting, split = (configfile.load(Path(name))[0] for name in ("paper", "paper/dirichlet"))
    assert (setting.partition.name, split.partition.name) == ("iid", "dirichlet")
    assert split.model == setting.model
    assert "paper/setting" not in bundled.names()


def test_a_file_of_that_name_goes_first(tmp_path: Path) -> None:
    (tmp_path / "quickstart").write_text("rounds: 3")
    assert configfile.load(Path("quickstart"))[0].rounds == 3


def test_data_of_a_bundled_configuration_and_a_dataset_of_the_same_name() -> None:
    assert configfile.load_data("quickstart").name == "digits"
    assert configfile.load_data("hdf5", ["data.path=x.h5"]).name == "hdf5"


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("configs/quickstart.yaml", "give quickstart instead of the path, and `flora-hpc init quickstart` writes a copy"),
        ("configs/paper/iid.yaml", "it comes with flora_hpc under the name paper/iid: give paper/iid instead of the path$"),
        ("quikstart", r"no such file; did you mean 'quickstart'\?$"),
        ("digits", "give a configuration; for example quickstart -s data.name=digits$"),
        ("runs/other.yaml", r"no such file; .*\(cluster, .* quickstart, study\), or write one with `flora-hpc init`$"),
    ],
)
def test_a_missing_file_is_answered_with_the_name(path: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        configfile.load(Path(path))


@pytest.mark.long
def test_a_wheel_brings_them_and_runs_outside_a_clone(tmp_path: Path) -> None:
    """The wheel is unpacked, so nothing is fetched; its path goes before the clone."""
    shutil.copytree(ROOT / "flora_hpc", tmp_path / "clone" / "flora_hpc", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "clone")
    clone, dist = (
        tmp_path / "clone",
        tmp_path / "dist",
    )  # setuptools leaves a folder `build` behind, which is not for the real clone
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", dist, clone]
    subprocess.run(build, check=True, timeout=300, capture_output=True)
    (wheel,) = dist.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    names = {str(path.relative_to(ROOT)) for path in (ROOT / "flora_hpc" / "configs").rglob("*.yaml")}
    assert names <= set(zipfile.ZipFile(wheel).namelist())
    command = [sys.executable, "-m", "flora_hpc", "run", "quickstart", "-s", "rounds=1", "--out", tmp_path / "run"]
    result = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "run.h5").is_file()
