"""`flora-hpc show`: a run as tables in the terminal, or as JSON or CSV for other programs."""

import csv
import json
import sys
import time
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.measure import Measurement
from rich.table import Table

from flora_hpc.cli._args import Run
from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file, views
from flora_hpc.records.schema import Rows

HIDDEN_FIRST = (
    "server_seconds", "sum_seconds", "log_seconds", "num_rejected", "downlink_bytes", "weight", "group", "eval_seconds",
    "num_steps", "num_examples", "collective_bytes", "comm_seconds", "uplink_bytes", "update_norm", "peak_memory_bytes",
    "num_clients", "wait_seconds", "batch_seconds",
)  # fmt: skip


class Part(StrEnum):
    """What can be shown."""

    summary = "summary"
    rounds = "rounds"
    ranks = "ranks"
    clients = "clients"
    topology = "topology"


def show(
    run: Run,
    part: Annotated[Part, typer.Argument(help="which table")] = Part.summary,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="the table as CSV on standard output; needs a table's name")] = False,
    last: Annotated[int | None, typer.Option(min=1, help="only the last N rows", show_default=False)] = None,
) -> None:
    """Show a run, finished or still being written."""
    if as_json and as_csv:
        raise UserError("--json --csv: choose one of them")
    attributes, tables = hdf5file.read(run)
    if as_json:
        chosen = tables if part == Part.summary else {part.value: tables[part.value]}
        rows = {name: [record(table, row) for row in table[-last if last else 0 :]] for name, table in chosen.items()}
        json.dump({"attributes": attributes} | rows, sys.stdout)
        print()
    elif as_csv:
        if part == Part.summary:
            raise UserError(
                "--csv: name a table (rounds, ranks, clients or topology), for example: flora-hpc show RUN rounds --csv"
            )
        table = tables[part.value][-last if last else 0 :]
        writer = csv.DictWriter(sys.stdout, table.dtype.names or (), lineterminator="\n")
        writer.writeheader()
        writer.writerows(record(table, row) for row in table)
    elif part == Part.summary:
        config = yaml.safe_load(attributes["config"])
        facts = {
            "status": status(attributes["status"], hdf5file.locate(run).stat().st_mtime),
            "model": config["model"]["name"],
            "method": f"{config['method']['name']}, {attributes['num_params']:,} trained numbers",
            "data": f"{attributes['dataset']}, {config['partition']['name']} over {attributes['num_clients']:,} clients",
            "ranks": f"{attributes['world_size']} (launcher: {attributes['launcher']}), backend {attributes['backend']}",
        }
        if attributes.get("num_damaged"):
            facts["left out"] = f"{attributes['num_damaged']:,} images that cannot be decoded"
        Console().print(views.summary(tables["rounds"], facts, str(run)))
    else:
        show_table(Console(), tables[part.value][-last if last else 0 :])


def show_table(console: Console, rows: Rows) -> None:
    """Print every row, without columns of what was not asked for.

    On a terminal too narrow for the others, the less telling ones are left out, and that is said.
    """
    optional = () if views.per_client(rows) else views.PER_CLIENT
    names = [name for name in rows.dtype.names or () if name not in optional]
    unbounded = console.options.update(max_width=10_000)
    hidden = []
    while (width := Measurement.get(console, unbounded, as_table(rows, names)).maximum) > console.width:
        if not console.is_terminal:
            console.width = width  # a file or another program has no width to keep to
        elif less := [name for name in HIDDEN_FIRST if name in names]:
            hidden.append(less[0])
            names.remove(less[0])
        else:
            break
    console.print(as_table(rows, names))
    if hidden:
        console.print(f"[dim]not shown for want of width: {', '.join(hidden)} (--csv and --json have all)[/]")


def status(said: str, written: float) -> str:
    """What the file says of itself; of one that is still running, when it last grew, since a killed run cannot say so."""
    return said if said != "running" else f"running (last written {views.seconds(max(0.0, time.time() - written))} ago)"


def record(table: Rows, row: Any) -> dict[str, Any]:
    """One row as plain Python values; NaN and infinity become None."""
    values = {}
    for name in table.dtype.names or ():
        value = row[name].item() if isinstance(row[name], np.generic) else row[name]
        value = value.decode() if isinstance(value, bytes) else value
        values[name] = None if isinstance(value, float) and not np.isfinite(value) else value
    return values


def as_table(rows: Rows, names: list[str]) -> Table:
    """Every row, the columns `names`, with units a person reads."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name.removesuffix("_seconds").removesuffix("_bytes").replace("_", " "), justify="right", overflow="fold")
    for row in rows:
        values = record(rows, row)
        table.add_row(*(cell(name, values[name]) for name in names))
    return table


def cell(name: str, value: Any) -> str:
    """One value as text: seconds and bytes with their unit, other numbers to four digits."""
    if value is None:
        return "-"
    if name.endswith("_seconds"):
        return views.seconds(value)
    if name.endswith("_bytes"):
        return decimal(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
