"""Every tutorial is played whole, block by block, in an empty folder."""

import os
from pathlib import Path

import pytest

from tests import tutorial
from tests.conftest import ROOT

STUDIES = ("photos", "skewed-data", "slurm")  # pages that play studies take minutes: `make test-all` plays them
ALL = "FLORA_HPC_TUTORIALS" in os.environ
PAGES = sorted(path for path in (ROOT / "docs" / "tutorials").glob("*.md") if path.stem != "index")
TICKS = "```"


SKIPPED = pytest.mark.skipif(not ALL, reason="takes minutes; FLORA_HPC_TUTORIALS=all plays it")


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.stem, marks=[SKIPPED] if page.stem in STUDIES else []) for page in PAGES]
)
def test_a_tutorial_can_be_typed(page: Path, tmp_path: Path, python: list[str]) -> None:
    assert [block for block in tutorial.blocks(page.read_text()) if block.kind == "bash" and not block.why]
    tutorial.play(page, tmp_path, python)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{TICKS}bash\nfalse\necho on\n{TICKS}\n", "block 0 fails"),
        (f"{TICKS}python\nimport nowhere\n{TICKS}\n", "No module named 'nowhere'"),
        (f"{TICKS}bash\necho accuracy 0.9\n{TICKS}\n{TICKS}text\nloss 0.1\n{TICKS}\n", "'loss 0.1' is not printed any more"),
    ],
)
def test_a_failing_block_and_a_stale_output_fail(text: str, message: str, tmp_path: Path, python: list[str]) -> None:
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(AssertionError, match=message):
        tutorial.play(tmp_path / "page.md", tmp_path / "folder", python)


def test_numbers_spaces_and_files_may_differ(tmp_path: Path, python: list[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        f'{TICKS}yaml title="a.yaml"\nkey: 1\n{TICKS}\n{TICKS}bash\ncat a.yaml\necho "round  3 | 1.5 s"\n{TICKS}\n'
        f"{TICKS}text\nkey: 1\n...\nround 12 | 0.25 s\n{TICKS}\n<!-- not run: no Slurm -->\n{TICKS}bash\nfalse\n{TICKS}\n"
    )
    tutorial.play(page, tmp_path / "folder", python)
    assert (tmp_path / "folder" / "a.yaml").read_text() == "key: 1\n"
