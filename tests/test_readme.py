"""What the pages promise exists: commands, files, targets."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import flora_hpc
from flora_hpc import configfile, plugins, yamltext
from flora_hpc.cli import app
from flora_hpc.cli._algorithms import parts_of
from flora_hpc.config import PARTS
from flora_hpc.errors import UserError
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
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
            is_made = re.match(r"(\.\./)*reference/", target)  # by tools/site; `make docs` checks these links
            assert "://" in target or is_made or (page.parent / target).exists(), f"{page.name}: {target}"
    for path in re.findall(r"\b(?:configs|tests|docs|slurm|tools)/[\w./-]+\.\w+", TEXT):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("start", [["-m", "flora_hpc"], ["-c", "from flora_hpc.cli import main; main()"]], ids=["module", "entry"])
def test_help_speaks_at_once(start: list[str]) -> None:
    result = subprocess.run([sys.executable, *start, "--help"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    for command in ("run", "plan", "doctor", "list", "show", "report", "evaluate", "export", "bench", "slurm"):
        assert command in result.stdout


def test_overrides_in_the_pages_pass_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with the user's own parts as well, whose files are printed."""
    monkeypatch.setattr(plugins, "_used", {})
    for name in ("my_fedavgm.py", "my_sign.py"):
        block = re.search(rf"`{name}`[^`]*?:\n\n((?:    .*\n|\n)+)", (ROOT / "docs" / "own-parts.md").read_text())
        assert block is not None
        (tmp_path / name).write_text(textwrap.dedent(block[1]))
        plugins.use(tmp_path / name)
    commands = re.findall(r"flora-hpc run quickstart(?:\.yaml)?((?:.*) -s [^`\n]*)", TEXT)
    assert commands
    for command in commands:
        if "my_decay" in command:
            continue  # its file is printed in a tutorial, which a test plays whole
        overrides = re.findall(r"-s (\S+)", command)
        configfile.load(ROOT / "configs" / "quickstart.yaml", overrides)


# --- docs/algorithms.md


ALGORITHMS = (ROOT / "docs" / "algorithms.md").read_text()


def test_every_algorithm_has_a_row_with_its_papers() -> None:
    table = ALGORITHMS.partition("## All algorithms")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.M))
    assert sorted(rows) == plugins.members("algorithms")
    for name, row in rows.items():
        *cells, papers = row.split(" | ")
        assert len(cells) == 5, name
        assert all(cells), name
        known = re.findall(r"\d{4}\.\d{5}", plugins.member("algorithms", name).PAPER)
        assert re.findall(r"\[(\S+)\]\(https://arxiv.org/abs/\1\)", papers) == known, name


def test_the_parts_that_the_table_names_are_there() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", ALGORITHMS.partition("\n## Parts")[2].partition("\n## ")[0], re.M)
    assert [part for part, _ in rows] == list(PARTS)
    for part, names in rows:
        for name in re.findall(r"`(\w+)`", names):
            assert part in parts_of(name), (part, name)


def test_the_configurations_of_algorithms_are_accepted() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", ALGORITHMS, re.S)
    assert blocks
    for block in blocks:
        flora_hpc.plan(flora_hpc.load_config(ROOT / "configs" / "quickstart.yaml", **yamltext.parse(block)))


REFUSED = {  # what the page says is refused, in its order
    "server: fedprox": "server.name: fedprox has no server part of its own",
    "algorithm: scaffold\nserver: fedadam": "its local part needs the server's control",
    "local: fedavg\nalgorithm: scaffold": "its server part needs the clients' control",
    "algorithm: logit_adjustment\nclient: {loss: contrastive}": "client.loss: contrastive would be replaced",
    "algorithm: rolora\ntransform: top_k": "other tensors are trained from round to round, but the transform part remembers",
    "algorithm: rolora\nserver: fedadam": "other tensors are trained from round to round, but the server part remembers",
    "algorithm: rolora\nclient: {optimizer_state: keep}": "other tensors are trained from round to round, but client.",
    "algorithm: ditto\nsharing: fedper": "some tensors stay with their client, but the local part trains a second model",
    "algorithm: ffa_lora\nmethod: {name: fedlc}": "ffa_lora treats the A and B of LoRA adapters differently",
    "algorithm: {name: by_name, frozen: ['*']}": "none of the trained tensors",
    "algorithm: flexlora\nlocal: ditto": "makes new factors A and B of each layer in every round, but the local part trains",
    "algorithm: fedex_lora\nserver: fedadam": "the sharing, combine and server parts of fedex_lora go together only",
    "algorithm: fedsvd\nmethod: {name: fedlc}": "fedsvd treats the A and B of LoRA adapters differently",
    "algorithm: fednova\nevaluate: {cross_term: true}": "evaluate.cross_term: compares the means of A and B over clients",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_the_page_says_is_refused_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=re.escape(REFUSED[text])):
        flora_hpc.plan(flora_hpc.load_config(ROOT / "configs" / "quickstart.yaml", **yamltext.parse(text)))


def test_no_page_names_a_registry() -> None:
    assert not re.search(r"https?://(?!arxiv\.org|www\.apache\.org)", TEXT)
