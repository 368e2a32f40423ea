"""`flora-hpc show`: a run as tables in the terminal, or as JSON, CSV or Parquet for other programs."""

import csv
import json
import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from flora_hpc import extras, screen
from flora_hpc.cli._args import AsJson, Run
from flora_hpc.cli._table import plain_rows, show_table
from flora_hpc.errors import UserError, reason
from flora_hpc.records import views
from flora_hpc.records.opened import Run as OpenRun
from flora_hpc.records.opened import open_run
from flora_hpc.records.schema import Rows
from flora_hpc.records.sentences import describe
from flora_hpc.records.summary import rank_lines, summary

MOST_ROWS = 1000  # printed by default


def show(
    run: Run,
    rounds: Annotated[bool, typer.Option("--rounds", help="a row a round")] = False,
    ranks: Annotated[bool, typer.Option("--ranks", help="a row for every rank in every round")] = False,
    clients: Annotated[bool, typer.Option("--clients", help="a row for every client that trained in a round")] = False,
    topology: Annotated[bool, typer.Option("--topology", help="a row a rank: host, device, threads")] = False,
    last: Annotated[int | None, typer.Option(min=1, metavar="N", help="only the last N rows", show_default=False)] = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="one table as CSV on standard output")] = False,
    parquet: Annotated[Path | None, typer.Option(metavar="FILE", help="write one table to a file", show_default=False)] = None,
) -> None:
    """Show a run, finished or still being written: a summary, or the tables that are asked for."""
    if as_json + as_csv + (parquet is not None) > 1:
        raise UserError("--json, --csv, --parquet: choose one of them")
    flags = {"rounds": rounds, "ranks": ranks, "clients": clients, "topology": topology}
    table_names = [name for name, flag in flags.items() if flag]
    if (as_csv or parquet) and len(table_names) != 1:
        option = "--csv" if as_csv else "--parquet"
        raise UserError(f"{option}: name one table: --rounds, --ranks, --clients or --topology")
    screen.needs_reader()
    opened = open_run(run, table_names or (tuple(flags) if as_json else ("ranks", "topology")))
    tables = {name: opened.tables[name][-last if last else 0 :] for name in table_names or opened.tables}
    if as_json:
        write_json(opened, tables)
    elif as_csv:
        write_csv(tables[table_names[0]])
    elif parquet:
        write_parquet(opened, table_names[0], last, parquet)
    elif table_names:
        for name, rows in tables.items():
            if last is None and len(rows) > MOST_ROWS:
                print(
                    f"{name}: the last {MOST_ROWS:,} of {len(rows):,} rows; --last N asks for others, --csv for all",
                    file=sys.stderr,
                )
                rows = rows[-MOST_ROWS:]
            show_table(Console(), rows)
    else:
        console = Console()
        console.print(summary(console, opened.tables["rounds"], describe_run(opened), str(run)))


def describe_run(run: OpenRun) -> dict[str, str]:
    """Describe the run: status, settings, and how its ranks shared the work."""
    facts, rounds = run.attributes, run.tables["rounds"]
    lines = {"status": ", ".join(views.headline(rounds, status(run), run.num_rounds)[:2])} | describe(facts, run.tables["topology"])
    resumes = json.loads(facts.get("resumed_after", "[]"))
    if resumes:
        lines["goes on"] = "resumed after " + ", ".join(f"round {number}" if number >= 0 else "no round" for number in resumes)
    lines["ranks"] += earlier_ranks(run.tables["ranks"])
    lines["set up"] = views.start_up(facts) + " before round 0"
    return lines | rank_lines(run.tables["ranks"], run.tables["topology"])


def earlier_ranks(ranks: Rows) -> str:
    """The numbers of ranks before a resume on another number of ranks; empty without such a resume."""
    rounds, counts = np.unique(ranks["round"], return_counts=True)
    changes = np.flatnonzero(np.diff(counts))
    return "".join(f"; {counts[i]} until round {rounds[i]}" for i in changes)


def status(run: OpenRun) -> str:
    """The status in the file; of a running run also the time of its last write, since a killed run stays 'running'."""
    if run.status != "running":
        return run.status
    return f"running (last written {views.seconds(max(0.0, time.time() - run.path.stat().st_mtime))} ago)"


def write_json(run: OpenRun, tables: dict[str, Rows]) -> None:
    """Print attributes and tables as JSON; NaN and infinity, which JSON lacks, are null."""
    sys.stdout.write(f'{{"attributes": {json.dumps(run.attributes)}')
    for table, rows in tables.items():
        sys.stdout.write(f', "{table}": [')
        for number, row in enumerate(plain_rows(rows)):
            sys.stdout.write((", " if number else "") + json.dumps(dict(zip(rows.dtype.names or (), row, strict=True))))
        sys.stdout.write("]")
    print("}")


def write_csv(table: Rows) -> None:
    """Print one table as CSV; NaN and infinity are empty."""
    screen.for_programs()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(table.dtype.names or ())
    writer.writerows(plain_rows(table))


def write_parquet(run: OpenRun, name: str, last: int | None, path: Path) -> None:
    """Write one table with the types of run.h5. Raises UserError when pyarrow is missing or the file cannot be written."""
    extras.need("--parquet", "pyarrow")
    import pyarrow as pa
    from pyarrow import parquet

    columns = {key: values[-last if last else 0 :] for key, values in run.columns(name).items()}
    table = {key: pa.array(values, pa.string() if isinstance(values, list) else None) for key, values in columns.items()}
    try:
        parquet.write_table(pa.table(table), path)
    except OSError as error:
        raise UserError(f"--parquet {path}: cannot be written ({reason(error)}); choose another place") from None
