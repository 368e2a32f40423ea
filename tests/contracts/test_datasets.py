"""What every dataset promises; a new file in flora_hpc/data/datasets, or row of its table, is tested the day it appears."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from flora_hpc import plugins
from flora_hpc.data.datasets._catalog import CATALOG
from flora_hpc.data.images import DatasetOptions
from flora_hpc.errors import UserError

NAMES = plugins.members("datasets")
NEEDED = {  # options without which a member has nothing to build from
    "hdf5": {"path": Path("nowhere.h5")},
    "imagefolder": {"path": Path("nowhere")},
    "pairs": {"path": Path("nowhere.csv")},
}
BUNDLED = {"digits"}  # of a library that is always there


def test_the_papers_datasets_are_there() -> None:
    paper = {"fmnist", "cifar10", "cifar100", "tiny_imagenet", "pets", "flowers102", "aircraft", "cars", "dtd", "eurosat"}
    paper |= {"fer2013", "caltech101", "food101", "country211", "sun397", "rendered_sst2"}
    assert paper <= set(NAMES)
    assert paper == set(CATALOG)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name: str) -> None:
    member = plugins.member("datasets", name)
    line = str(member.__doc__).splitlines()[0]
    assert 30 < len(line) < 125
    assert line.endswith(".")
    assert callable(member.build)
    assert issubclass(member.Options, DatasetOptions)
    assert all(field.description for field in member.Options.model_fields.values())


@pytest.mark.parametrize("name", CATALOG)
def test_a_file_says_the_same_as_its_row(name: str) -> None:
    assert plugins.member("datasets", name).__doc__ == CATALOG[name].about


@pytest.mark.parametrize("name", NAMES)
def test_options_are_checked_at_birth(name: str) -> None:
    options = plugins.member("datasets", name).Options
    with pytest.raises(ValidationError, match=r"needs \{\} once|brings its own caption"):
        options(name=name, caption="a photo", **NEEDED.get(name, {}))
    with pytest.raises(ValidationError, match="roots"):
        options(name=name, roots="/", **NEEDED.get(name, {}))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BUNDLED])
def test_missing_data_are_told_with_a_cure(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLORA_HPC_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    member = plugins.member("datasets", name)
    with pytest.raises(UserError) as error:
        member.build(member.Options(name=name, **NEEDED.get(name, {})))
    assert "there is no " in str(error.value)
    assert name in NEEDED or f"in {tmp_path}" in str(error.value)
    assert "data." in str(error.value)  # the option to change
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_table_costs_no_import_of_torch() -> None:
    code = "import sys; from flora_hpc import plugins; plugins.member('datasets', 'pets'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
