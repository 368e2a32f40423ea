"""A table of a study in the terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from flora_hpc.studies.formats import Texts, texts
from flora_hpc.studies.table import Column

HIDDEN_FIRST = (
    "best_round", "num_rounds", "uplink_bytes", "best_test_accuracy", "final_personal_accuracy", "final_validation_accuracy",
    "final_test_accuracy", "num_ranks", "setup_seconds", "train_seconds", "round_seconds", "interval", "pairs", "name",
)  # fmt: skip


def print_table(console: Console, columns: Sequence[Column], metric: str) -> None:
    """Print every row. On a terminal that is too narrow, the least important columns are hidden, and a line names them.

    A file or another program has no width: it gets all columns that people see, one line a row. The metric is never hidden.
    """
    visible = texts(columns)
    candidates = [column for name in HIDDEN_FIRST for column in visible if column.name == name != metric]
    left_away = []
    while (width := _width(console, visible)) > console.width:
        if not console.is_terminal:
            console.width = width
        elif candidates:
            left_away.append(candidates.pop(0))
            visible = [column for column in visible if column is not left_away[-1]]
        else:
            break
    console.print(_table(visible, console.is_terminal))
    if left_away:
        names = ", ".join(column.heading for column in left_away)
        console.print(Text(f"not shown for want of width: {names} (--json has all)", "dim"), soft_wrap=True)


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print one line, however long it is."""
    console.print(Text(text, style), soft_wrap=True)


def _width(console: Console, columns: Sequence[Texts]) -> int:
    unbounded = console.options.update(max_width=100_000)
    return Measurement.get(console, unbounded, _table(columns, console.is_terminal)).maximum


def _table(columns: Sequence[Texts], ruled: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD if ruled else None, pad_edge=False, padding=(0, 1, 0, 0) if ruled else (0, 2, 0, 0))
    for column in columns:
        table.add_column(Text(column.heading), justify="left" if column.is_left else "right", overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, cells))
    return table
