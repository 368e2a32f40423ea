"""Plays a page of the documents as its reader would: files are written, shell lines and Python blocks run, and output compared.

```bash              run by bash, which ends at the first line that fails
```python            run by Python
```python title="x"  written to the file x; so are yaml blocks with a title
```text              lines of the output of the block before, but for numbers and spaces; `...` for any lines or any end of a line
<!-- not run: why -->  on the line before a block that is not run
"""

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<kind>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$", re.M | re.S
)
SKELETON = re.compile(r"[\d.,:+-]*\d[\d.,:]*")  # a number, which differs from machine to machine


class Block(NamedTuple):
    """A fenced block: its language, the file that it is written to, its lines, and why it is not run."""

    kind: str
    title: str | None
    code: str
    why: str | None


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(match["kind"], match["title"], match["code"], match["why"]) for match in FENCE.finditer(text)]


def skeleton(line: str) -> str:
    """A line without its numbers and runs of spaces."""
    return " ".join(SKELETON.sub("#", line).split())


def same(line: str, printed: str) -> bool:
    """Whether a line of a page is a line that is printed. `...` at its end stands for anything."""
    return printed.startswith(line.removesuffix("...").rstrip()) if line.endswith("...") else line == printed


def play(page: Path, folder: Path, python: Sequence[str]) -> None:
    """Play a page in an empty folder. Raises AssertionError at the first block that fails or whose output lacks a line."""
    programs = folder / ".bin"
    programs.mkdir(parents=True)
    (programs / "flora-hpc").write_text(f'#!/bin/sh\nexec {shlex.join(python)} -m flora_hpc "$@"\n')
    (programs / "flora-hpc").chmod(0o755)
    own = {"PATH": f"{programs}:{os.environ['PATH']}", "COLUMNS": "110", "OMP_NUM_THREADS": "1"}
    store = {"FLORA_HPC_CACHE": str(folder / ".cache")}  # unless tests share one
    output = ""
    for number, block in enumerate(blocks(page.read_text())):
        if block.why:
            continue
        if block.title:
            (folder / block.title).write_text(block.code)
        elif block.kind == "text":
            lines = [skeleton(line) for line in output.splitlines()]
            missing = [line for line in block.code.splitlines() if not any(same(skeleton(line), each) for each in lines)]
            assert not missing, f"{page.name}: {missing[0]!r} is not printed any more; this is:\n{output}"
        elif block.kind in ("bash", "python"):
            (folder / ".block").write_text(block.code)
            command = ["bash", "-e", ".block"] if block.kind == "bash" else [*python, ".block"]
            result = subprocess.run(command, cwd=folder, env=store | os.environ | own, capture_output=True, text=True, timeout=400)
            output = result.stdout + result.stderr
            assert result.returncode == 0, f"{page.name}: block {number} fails:\n{block.code}\n{output}"
