"""What the pages of several measurements share: how a result is told, remarks below a table, where and on what was measured."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

BEWARE = "beware"
BUSY = 1.2  # upper over lower quartile of what should be alike; on a machine that does nothing else they are


def tell_result(result: dict[str, Any], as_json: bool, show: Callable[[Console, dict[str, Any]], None]) -> None:
    """A result as one JSON object on standard output, or as `show` prints it."""
    if as_json:
        json.dump(result, sys.stdout)
        print()
    else:
        show(Console(highlight=False), result)


def remarks(named: Mapping[str, str]) -> Table:
    """Remarks with their names on the left."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    for name, text in named.items():
        grid.add_row(name, Text(text, "yellow" if name == BEWARE else ""))
    return grid


def machine(result: Mapping[str, Any]) -> str:
    """Processor, threads, device and PyTorch of a result."""
    threads = f"{result['num_threads']} thread{'s' * (result['num_threads'] > 1)}"
    return f"{result['processor']}, {threads}, {result['device']}, PyTorch {result['versions']['torch']}"


def beware(apart: Mapping[str, float]) -> dict[str, str]:
    """A remark on what lies further apart than on a quiet machine, by how many times; none where nothing does."""
    busy = [f"{name} {factor:.2g} times" for name, factor in apart.items() if factor > BUSY]
    return {BEWARE: f"repeats differ ({', '.join(busy)}): the machine was busy; measure again when it is quiet"} if busy else {}
