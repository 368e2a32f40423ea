"""`flora-hpc study show`: the settings of a study, with mean and spread over their seeds."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flora_hpc import screen, yamltext
from flora_hpc.cli._args import AsJson
from flora_hpc.cli._study_table import print_line, print_table
from flora_hpc.errors import UserError
from flora_hpc.records.study import INDEX, STATUSES, Study, for_json, open_study
from flora_hpc.studies import formats, loose, table
from flora_hpc.studies.names import full
from flora_hpc.studies.statistics import Setting, settings
from flora_hpc.studies.table import Column

NEXT_KEY = re.compile(r",(?=\s*[\w.]+\s*=)")  # a comma between two KEY=VALUE
Studies = Annotated[list[Path], typer.Argument(metavar="DIR", help="a study's directory, or directories of runs")]
Metric = Annotated[str, typer.Option(metavar="COLUMN", help="the result that is compared, such as validation_accuracy")]


def show(
    paths: Studies,
    metric: Metric = table.DEFAULT,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUE[,...]", show_default=False, help="also differences to the setting with these values, paired by seed"
        ),
    ] = None,
    points: Annotated[bool, typer.Option("--points", help="a row a point instead of a row a setting")] = False,
    seconds: Annotated[bool, typer.Option("--seconds", help="also measured seconds and ranks, which vary from run to run")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on standard output")] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="a table of LaTeX's package booktabs, accuracies in percent")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the settings of a study, finished or still being played: mean, standard deviation and 95 % t-interval over seeds.

    Several runs are shown in the same way: settings are what differs between their configurations, apart from the seed.
    """
    if as_csv + as_latex + as_json > 1:
        raise UserError("--csv, --latex, --json: choose one of them")
    if points and against is not None:
        raise UserError("--against: compares settings, and --points shows points; leave one of the two out")
    column = table.metric_of(metric)
    reference = {} if against is None else parse_reference(against)
    screen.needs_reader()
    study = open_all(paths)
    reference = {full(name, study.keys): value for name, value in reference.items()}
    groups = settings(study.rows)
    if points:
        columns = table.of_points(study.rows, column, seconds)
    else:
        columns = table.of_settings(groups, column, seconds)
        columns += table.against(groups, reference, column) if reference else []
    note = f"difference to {table.words(reference)}, paired by seed" if reference else ""
    if as_json:
        print(json.dumps(contents(study, columns, column, reference, points), allow_nan=False))
    elif as_csv or as_latex:
        screen.for_programs()
        sys.stdout.write(formats.as_csv(columns) if as_csv else formats.as_latex(columns, note))
    else:
        print_all(study, groups, columns, column, note)


def open_all(paths: Sequence[Path]) -> Study:
    """The study in a directory, or the runs at `paths` as one. Notes about runs that are left out go to standard error."""
    is_study = [path.name == INDEX or (path / INDEX).is_file() for path in paths]
    if len(paths) == 1 and (is_study[0] or not loose.is_run(paths[0])):
        if not is_study[0] and any(paths[0].glob("*/run.h5")):
            raise UserError(f"{paths[0]}: holds runs, but no study; name the runs: flora-hpc study show {paths[0]}/*")
        return open_study(paths[0])
    if any(is_study):
        raise UserError(f"{paths[is_study.index(True)]}: is a study; show it alone, or name run directories only")
    runs = loose.of_runs(paths)
    for note in runs.notes:
        print(f"note: {note}", file=sys.stderr)
    return runs


def parse_reference(text: str) -> dict[str, Any]:
    """The keys and values of `--against`. Raises UserError where one is no KEY=VALUE."""
    values: dict[str, Any] = {}
    for part in NEXT_KEY.split(text):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not (key and equals and value):
            raise UserError(f"--against {text}: write KEY=VALUE, for example --against method.name=flora")
        try:
            values[key] = yamltext.value(value)
        except yamltext.YamlError as error:
            raise UserError(f"--against {key}: {error}") from None
    return values


def contents(study: Study, columns: list[Column], metric: str, reference: dict[str, Any], are_points: bool) -> dict[str, Any]:
    """What --json prints."""
    keys = [point.keys for point in study.rows] if are_points else [group.keys for group in settings(study.rows)]
    rows = [{"keys": for_json(values)} | row for values, row in zip(keys, formats.as_rows(columns), strict=True)]
    failed = [point for point in study.rows if point.status == "failed"]
    return {
        "points": {status: study.count(status) for status in STATUSES},
        "metric": metric,
        **({"against": for_json(reference)} if reference else {}),
        "rows": rows,
        "failed": [{"name": point.name, "keys": for_json(point.keys), "message": point.message} for point in failed],
    }


def print_all(study: Study, groups: Sequence[Setting], columns: list[Column], metric: str, note: str) -> None:
    """Print the counts, the table, and the failed points with their messages."""
    console = Console(highlight=False)
    print_line(console, table.counts(study, len(groups)), "bold")
    print_table(console, columns, metric)
    if note:
        print_line(console, note, "dim")
    for line in table.failures(study):
        print_line(console, f"failed: {line}", "red")
