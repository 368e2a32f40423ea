"""A table of run.h5 for people."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.measure import Measurement
from rich.table import Table

from flora_hpc.records import views
from flora_hpc.records.schema import DECILES, WORST, Rows

HIDDEN_FIRST = (
    *DECILES, "message_norm", "message_bytes", "memory_norm",
    "num_attackers", "server_seconds",
    "sum_seconds", "log_seconds", "num_rejected", "downlink_bytes", "weight", "group", "eval_seconds",
    "num_steps", "num_examples", "collective_bytes", "comm_seconds", "uplink_bytes", "update_norm", "peak_memory_bytes",
    "num_clients", "wait_seconds", "batch_seconds", "train_seconds", "train_loss",
)  # fmt: skip
COUNTS = ("message_bytes", "num_attackers", "attacks", "adapter_rank")  # zeros where the run has no use for them
OPTIONAL = (
    *views.PERSONAL,
    *views.BY_RANK,
    "rank_accuracy",
    "message_norm",
    "cross_term",
    "backdoor_success",
    "memory_norm",
    "global_accuracy",
    "personal_accuracy",
    *COUNTS,
)
SLICE_ROWS = 100_000  # rows that are Python objects at a time
ONLY_FOR_PROGRAMS = tuple(name for number, name in enumerate(DECILES, 1) if number not in (1, 5, 9))  # too many for people
NUMBERS_OF = ("round", "rank", "client", "group", "local_rank", *WORST)  # these number a thing, they do not count


def columns(rows: Rows) -> dict[str, list[Any]]:
    """Every column as plain Python values; NaN and infinity become None."""
    plain: dict[str, list[Any]] = {}
    for name in rows.dtype.names or ():
        column = rows[name]
        values = column.tolist()
        if column.dtype.kind == "f":
            values = [value if finite else None for value, finite in zip(values, np.isfinite(column), strict=True)]
        plain[name] = [value.decode() if isinstance(value, bytes) else value for value in values]
    return plain


def plain_rows(rows: Rows) -> Iterator[tuple[Any, ...]]:
    """Every row as plain Python values, converted SLICE_ROWS at a time: a whole table would take many times its memory."""
    for start in range(0, len(rows), SLICE_ROWS):
        yield from zip(*columns(rows[start : start + SLICE_ROWS]).values(), strict=True)


def show_table(console: Console, rows: Rows) -> None:
    """Print every row, without the columns of options that the run did not use, and with three of the nine deciles.

    On a terminal that is too narrow, the least important columns are hidden, and a line names them. A file or another program has
    no width: it gets all columns, one line a row.
    """
    unused = [] if views.per_client(rows) else [*views.PER_CLIENT]
    unused += [] if len(views.validations(rows)) else ["validation_accuracy"]
    measured = [name for name in OPTIONAL if name in (rows.dtype.names or ()) and (rows[name] >= (name in COUNTS)).any()]
    unused += [*ONLY_FOR_PROGRAMS, *(name for name in OPTIONAL if name not in measured)]
    names = [name for name in rows.dtype.names or () if name not in unused]
    values = columns(rows)
    unbounded = console.options.update(max_width=10_000)
    hidden = []
    while (width := Measurement.get(console, unbounded, as_table(values, names, console.is_terminal)).maximum) > console.width:
        if not console.is_terminal:
            console.width = width
        elif candidates := [name for name in HIDDEN_FIRST if name in names]:
            hidden.append(candidates[0])
            names.remove(candidates[0])
        else:
            break
    console.print(as_table(values, names, console.is_terminal))
    if hidden:
        console.print(f"[dim]not shown for want of width: {', '.join(hidden)} (--csv and --json have all)[/]")


def as_table(values: dict[str, list[Any]], names: list[str], ruled: bool) -> Table:
    """A table of every row, with the columns `names` and readable units."""
    table = Table(box=box.SIMPLE_HEAD if ruled else None, pad_edge=False, padding=(0, 1) if ruled else (0, 2, 0, 0))
    for name in names:
        table.add_column(name.removesuffix("_seconds").removesuffix("_bytes").replace("_", " "), justify="right", overflow="fold")
    for row in zip(*(values[name] for name in names), strict=True):
        table.add_row(*(cell(name, value) for name, value in zip(names, row, strict=True)))
    return table


def cell(name: str, value: Any) -> str:
    """One value as text: seconds and bytes with their unit, counts with commas, other numbers to four digits."""
    if value is None or (name in WORST and value < 0):
        return "-"
    if name.endswith("_seconds"):
        return views.seconds(value)
    if name.endswith("_bytes"):
        return decimal(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and name not in NUMBERS_OF else str(value)
