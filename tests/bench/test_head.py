import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from flora_hpc.bench import comm, head
from flora_hpc.cli import app
from tests.conftest import ROOT


def test_every_bench_prints_through_the_one_place() -> None:
    """So no bench can forget the head: a file that dumps JSON by itself would show here."""
    files = {path.name: path.read_text() for path in (ROOT / "flora_hpc" / "cli").glob("_bench_*.py")}
    dumping = [name for name, text in files.items() if "json.dump" in text]
    assert dumping == ["_bench_page.py"]


def test_the_head_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "measure", lambda *rest: {"backend": "serial"})
    monkeypatch.setattr(sys, "argv", ["/bin/flora-hpc", "bench", "comm", "--json"])
    result = CliRunner().invoke(app, ["bench", "comm", "--json"])
    assert result.exit_code == 0, result.exception
    printed = json.loads(result.stdout)
    assert tuple(printed)[: len(head.KEYS)] == head.KEYS
    assert (printed["schema"], printed["bench"], printed["command"]) == (1, "comm", "flora-hpc bench comm --json")
    assert printed["cores"] == len(os.sched_getaffinity(0))
    assert printed["memory"] > 2**20
    assert printed["backend"] == "serial"


def test_the_table_in_the_docs_has_the_keys() -> None:
    text = (ROOT / "docs" / "benchmark.md").read_text()
    table = text[text.index("## The head of every result") :]
    assert tuple(line.split("`")[1] for line in table.splitlines() if line.startswith("| `"))[: len(head.KEYS)] == head.KEYS


def test_models_of_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    (tmp_path / "0000:01").mkdir()
    (tmp_path / "0000:01" / "information").write_text("Model: \t\t Fast GPU 80GB\nIRQ: 7\n")
    assert head.gpus(tmp_path) == ["Fast GPU 80GB"]
    assert head.gpus(tmp_path / "none") == []
    torch = SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 2, get_device_name=lambda number: f"GPU {number}"))
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert head.gpus(tmp_path) == ["GPU 0", "GPU 1"]


def test_the_commit_of_the_package_and_not_of_what_is_around_it(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(tmp_path), *words], capture_output=True, text=True, check=True).stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (tmp_path / "README").touch()
    assert head.commit(package) is None
    git("init")
    git("add", "README")
    commit = ["-c", "user.name=n", "-c", "user.email=n@e", "commit", "-m", "first"]
    git(*commit)
    assert head.commit(package) is None, "the package is not in the repository around it"
    git("add", ".")
    git(*commit)
    assert head.commit(package) == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("# changed\n")
    assert head.commit(package) == git("rev-parse", "HEAD") + "-dirty"
