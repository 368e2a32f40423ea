"""What the pages promise exists: commands, files, targets."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from flora_hpc import configfile, plugins
from flora_hpc.cli import app
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)


def test_every_printed_command_exists() -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups}
    printed = set(re.findall(r"flora-hpc ([a-z]+)\b", TEXT))
    assert {"run", "show", "doctor"} <= printed
    assert printed <= known


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    printed = set(re.findall(r"`?make ([a-z]+)`?\b", TEXT))
    assert {"demo", "test", "check"} <= printed
    assert printed <= targets


def test_every_file_that_is_named_or_linked_exists() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", page.read_text()):
            target = link[0] or link[1]
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
    for path in re.findall(r"\b(?:configs|tests|docs|slurm|tools)/[\w./-]+\.\w+", TEXT):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("start", [["-m", "flora_hpc"], ["-c", "from flora_hpc.cli import main; main()"]], ids=["module", "entry"])
def test_help_speaks_at_once(start: list[str]) -> None:
    result = subprocess.run([sys.executable, *start, "--help"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    for command in ("run", "plan", "doctor", "list", "show", "report", "evaluate", "export", "bench", "slurm"):
        assert command in result.stdout


def test_overrides_in_the_pages_pass_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with the user's own part as well, whose file is printed."""
    monkeypatch.setattr(plugins, "_used", {})
    block = re.search(r"`my_fedavgm.py`:\n\n((?:    .*\n|\n)+)", (ROOT / "docs" / "own-parts.md").read_text())
    assert block is not None
    (tmp_path / "my_fedavgm.py").write_text(textwrap.dedent(block[1]))
    plugins.use(tmp_path / "my_fedavgm.py")
    commands = re.findall(r"flora-hpc run configs/quickstart.yaml((?:.*) -s .*)", TEXT)
    assert commands
    for command in commands:
        overrides = re.findall(r"-s (\S+)", command)
        configfile.load(ROOT / "configs" / "quickstart.yaml", overrides)


def test_no_page_names_a_registry() -> None:
    assert not re.search(r"https?://(?!arxiv\.org|www\.apache\.org)", TEXT)
