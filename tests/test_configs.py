from pathlib import Path

import pytest

from flora_hpc import configfile
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=[str(path.relative_to(ROOT)) for path in CONFIGS])
def test_every_shipped_config_loads(path: Path) -> None:
    config, notes = configfile.load(path, ["data.path=x.h5"] if "data: {name: hdf5}" in path.read_text() else [])
    assert [note for note in notes if not note.startswith("study: is a grid")] == []
    assert config.to_yaml()


def test_the_quickstart_is_among_them() -> None:
    assert ROOT / "configs" / "quickstart.yaml" in CONFIGS
