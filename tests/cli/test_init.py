from collections.abc import Callable
from pathlib import Path

import pytest

from flora_hpc import bundled, configfile
from tests.conftest import refusal


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", bundled.STARTS)
def test_the_copy_is_commented_and_loads(name: str, invoke: Callable[..., str]) -> None:
    assert invoke("init", name) == f"{name}.yaml is written. Next: {bundled.STARTS[name].format(f'{name}.yaml')}\n"
    assert Path(f"{name}.yaml").read_text().startswith("# ")
    assert configfile.load(Path(f"{name}.yaml"))[0] == configfile.load(Path(name))[0]


def test_the_default_is_the_quickstart(invoke: Callable[..., str]) -> None:
    invoke("init", "--out", "mine.yaml")
    assert Path("mine.yaml").read_bytes() == bundled.names()["quickstart"].read_bytes()


def test_a_file_is_not_replaced() -> None:
    Path("photos.yaml").write_text("mine")
    assert refusal("init", "photos") == "photos.yaml: exists already and is not replaced; name another file with --out"
    assert Path("photos.yaml").read_text() == "mine"


def test_a_folder_that_is_not_there_and_an_unknown_name() -> None:
    assert refusal("init", "--out", "nowhere/a.yaml") == "nowhere/a.yaml: there is no folder nowhere; make the folder nowhere first"
    assert refusal("init", "fotos").startswith("init: no configuration 'fotos'; did you mean 'photos'?")
