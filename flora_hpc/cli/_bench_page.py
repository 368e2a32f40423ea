"""The common parts of the pages of measurements: progress, title, table, lines and remarks."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flora_hpc import configfile
from flora_hpc.bench import quiet
from flora_hpc.bench.head import head
from flora_hpc.comm.launch import Launch
from flora_hpc.config import Config

BEWARE = "beware"


def progress_printer(me: Launch | None = None) -> Callable[[str], None]:
    """Make a function that prints progress on standard error, on rank 0 alone."""

    def progress(text: str) -> None:
        if me is None or me.rank == 0:
            print(text, file=sys.stderr, flush=True)

    return progress


def read(path: Path, overrides: list[str], progress: Callable[[str], None]) -> Config:
    """Load the configuration, and print its notes."""
    resolved, notes = configfile.load(path, overrides)
    for note in notes:
        progress(f"note: {note}")
    return resolved


def print_result(result: dict[str, Any], as_json: bool, show: Callable[[Console, dict[str, Any]], None]) -> None:
    """Print a result as one JSON object with the common head on standard output, or with `show`.

    The module of `show`, such as `_bench_step`, names the bench.
    """
    if as_json:
        json.dump(head(show.__module__.rpartition("_bench_")[2]) | result, sys.stdout)
        print()
    else:
        show(Console(highlight=False), result)


def page(
    console: Console,
    title: str,
    table: Table,
    lines: Sequence[str],
    notes: Mapping[str, str],
    repeats: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Print a title, a table, lines below it, and remarks by their names.

    `repeats` are numbers that should be alike; where they differ, a remark says that the machine was busy.
    """
    console.print(title, style="italic", markup=False)
    console.print(table)
    for line in lines:
        console.print(line)
    if lines:
        console.print()
    spread = {name: max(values) / min(values) for name, values in (repeats or {}).items()}
    console.print(remarks({**notes, **beware(spread)}))


def columns(left: Sequence[str], right: Sequence[str], no_wrap: bool = False) -> Table:
    """An empty table: columns of texts, then columns of numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=no_wrap)
    return table


def remarks(notes: Mapping[str, str]) -> Table:
    """Remarks with their names on the left."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    for name, text in notes.items():
        grid.add_row(name, Text(text, "yellow" if name == BEWARE else ""))
    return grid


def machine(result: Mapping[str, Any]) -> str:
    """Processor, threads, device and PyTorch of a result."""
    threads = f"{result['num_threads']} thread{'s' * (result['num_threads'] > 1)}"
    return f"{result['processor']}, {threads}, {result['device']}, PyTorch {result['versions']['torch']}"


def beware(spread: Mapping[str, float]) -> dict[str, str]:
    """A remark on repeats that differ more than on a quiet machine: name -> highest over lowest; empty when none do."""
    text = "\n".join(quiet.unsteady(spread))
    return {BEWARE: text} if text else {}
