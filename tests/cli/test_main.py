"""What the command line says before any command."""

import tomllib
from collections.abc import Callable

from flora_hpc import __version__
from tests.conftest import ROOT


def test_the_version_is_that_of_the_package(invoke: Callable[..., str]) -> None:
    assert invoke("--version") == f"flora-hpc {__version__}\n"
    assert __version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
