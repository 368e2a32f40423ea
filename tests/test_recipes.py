"""The recipes of benchmark drivers read class T's number. Each needs its driver: ReFrame from PyPI, JUBE from Debian."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flora_hpc.cli import _fom
from tests.bench.cluster.whole import whole
from tests.conftest import ROOT

RECIPES = ROOT / "benchmarks"
pytestmark = pytest.mark.recipes


def installed(variable: str, program: str) -> str:
    """The driver that a variable names, or that lies on PATH; a test without it is skipped."""
    path = os.environ.get(variable) or shutil.which(program)
    return path or pytest.skip(f"needs {program}: install it, or set {variable} to its path")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment with this checkout's `flora-hpc` on PATH."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "flora-hpc").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m flora_hpc "$@"\n')
    (programs / "flora-hpc").chmod(0o755)
    return os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def test_reframe(environ: dict[str, str], tmp_path: Path) -> None:
    reframe = installed("FLORA_HPC_REFRAME", "reframe")
    words = [
        "-c",
        str(RECIPES / "reframe" / "flora_hpc_cluster.py"),
        "-r",
        "-S",
        "fraction=0.008",
        "--prefix",
        str(tmp_path / "out"),
    ]
    done = subprocess.run([reframe, *words], capture_output=True, text=True, timeout=500, cwd=tmp_path, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "client_updates_per_second" in done.stdout


def test_jube(environ: dict[str, str], tmp_path: Path) -> None:
    jube = installed("FLORA_HPC_JUBE", "jube")
    text = (RECIPES / "jube" / "flora_hpc_cluster.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text.replace("type: float, _: 1.0}", "type: float, _: 0.008}"))
    for words in (["run", "recipe.yaml"], ["result", "results", "-a"]):
        done = subprocess.run([jube, *words], capture_output=True, text=True, timeout=500, cwd=tmp_path, env=environ)
        assert done.returncode == 0, done.stdout + done.stderr
    header, row = (line.split(",") for line in done.stdout.splitlines() if line.startswith(("class", "T,")))
    values = dict(zip((name.split("[")[0] for name in header), row, strict=True))
    assert values["valid"] == "VALID"
    assert float(values["updates_per_second"]) > 0


def test_every_figure_that_recipes_read_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    _fom.show(_fom.of_cluster(whole()))
    lines = capsys.readouterr().out.splitlines()
    assert "FOM client_updates_per_second = 6 1/s" in lines
    printed = {line.split()[1] for line in lines}
    jube = (RECIPES / "jube" / "flora_hpc_cluster.yaml").read_text()
    read = {word.split()[0] for word in jube.split("^FOM ")[1:]}
    ramble = (RECIPES / "ramble" / "applications" / "flora-hpc" / "application.py").read_text()
    read |= {line.split('"')[1] for line in ramble.splitlines() if line.startswith('    "') and line.endswith(",") and ": " in line}
    assert {"valid", "efficiency"} <= read
    assert read <= printed
