"""Studies made up for tests: a run.h5 a point, with the rows of /rounds that a test needs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flora_hpc.records.hdf5file import Writer
from flora_hpc.records.opened import open_run
from flora_hpc.records.study import Point, Study, open_study, result, write_index, write_row
from tests.contracts.known_helpers import round_record, run_info

NAN = float("nan")
Made = tuple[dict[str, Any], Sequence[float] | str]  # keys; the accuracies of rounds 0, 1, ..., or the message of a failure


def write_run(folder: Path, accuracies: Sequence[float], changes: dict[str, float] | None = None, **info: Any) -> Path:
    """A finished run; `changes` are columns of its trained rounds."""
    folder.mkdir(parents=True)
    writer = Writer(folder / "run.h5", run_info(**info))
    for number, accuracy in enumerate(accuracies):
        record = round_record(number, accuracy)
        for name, value in (changes or {}).items() if number else ():
            record.row[name] = value
        writer.add(record)
    writer.close("finished")
    return folder


def write_study(folder: Path, made: Sequence[Made], changes: dict[str, float] | None = None) -> Study:
    """A study with these points, named by their numbers."""
    folder.mkdir()
    rows = []
    for number, (keys, outcome) in enumerate(made):
        point = Point(f"p{number}", keys)
        if isinstance(outcome, str):
            row = replace(point, status=outcome, message="" if outcome in ("waiting", "running") else outcome)
            row = row if outcome in ("waiting", "running") else replace(row, status="failed")
        else:
            run = write_run(folder / "points" / point.name, outcome, changes, seed=keys.get("seed", 0))
            row = result(point, open_run(run, ("rounds",)))
        if row.status not in ("waiting", "running"):
            write_row(folder, row)
        rows.append(row)
    write_index(folder, rows)
    return open_study(folder)


def grid(num_seeds: int = 3, rounds: int = 3, **values: Sequence[Any]) -> list[Made]:
    """All combinations of values, '__' for a dot, with accuracies that differ between settings and seeds."""
    settings: list[dict[str, Any]] = [{}]
    for key, options in values.items():
        settings = [keys | {key.replace("__", "."): option} for keys in settings for option in options]
    return [
        (keys | {"seed": seed}, [0.2 + 0.01 * number + 0.005 * seed + 0.1 * round_number for round_number in range(rounds + 1)])
        for number, keys in enumerate(settings)
        for seed in range(num_seeds)
    ]
