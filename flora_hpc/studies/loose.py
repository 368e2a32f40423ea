"""Run directories that no study made, read as a study: settings are what differs between their configurations."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from flora_hpc.config import Config
from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file
from flora_hpc.records.opened import Run, open_run
from flora_hpc.records.sentences import leaves
from flora_hpc.records.study import Point, Study, result

NOT_A_SETTING = (
    "seed",
    "comm",
    "checkpoint",
    "records",
    "features.store",
    "cohort.assignment",
    "client.group_size",
    "client.first_step",
)
MORE_TESTS = (  # tests that change no other number; evaluate.every is a setting, since it decides the best round
    "evaluate.overlap",
    "evaluate.per_client",
    "evaluate.per_rank",
    "evaluate.cross_term",
)
FORMER_NAMES = {"aggregator": "algorithm"}  # of sections
MISSING = object()


@dataclass(frozen=True, eq=False, repr=False)
class LooseRuns(Study):
    """Runs as points. `path` is the folder that all of them are in; the name of a point is its path from there."""

    files: Mapping[str, Path]  # the run.h5 of each point
    notes: tuple[str, ...]  # sentences on runs that are left out

    def run(self, point: Point | str, tables: Sequence[str] = ("rounds",)) -> Run | None:
        """The run of a point."""
        return open_run(self.files[point if isinstance(point, str) else point.name], tables)


def is_run(path: Path) -> bool:
    """Whether a path is a run directory or its run.h5."""
    return path.is_file() or (path / "run.h5").is_file()


def of_runs(paths: Sequence[Path]) -> LooseRuns:
    """Read runs, finished or still being written, as the points of a study.

    Points are sorted by their settings, numbers by size, other values as `paths` bring them: a shell sorts 1000 before 20.
    A run with the settings and the seed of another run is left out, since equal runs give equal results; `notes` names it.
    Raises UserError for a path without a run.
    """
    if not paths:
        raise UserError("no run is named; give run directories")
    files = list(dict.fromkeys(hdf5file.locate(path).resolve() for path in paths))
    folders = [file.parent if file.name == "run.h5" else file for file in files]
    top = Path(os.path.commonpath([folder.parent for folder in folders]))
    names = [str(folder.relative_to(top)) for folder in folders]
    trees, points = [], []
    for file, name in zip(files, names, strict=True):
        run = open_run(file, ())
        trees.append(_settings(run))
        keys = {"seed": run.attributes.get("seed", run.config.get("seed", 0))}
        points.append(result(Point(name, keys), run))
    rows: dict[str, Point] = {}
    notes = ["a run is given twice, and counts once"] if len(files) < len(paths) else []
    for point, keys in zip(points, differing(trees), strict=True):
        status = "stopped" if point.status == "interrupted" else point.status
        _add(rows, replace(point, keys=keys | point.keys, status=status), notes)
    return LooseRuns(top, tuple(in_order(list(rows.values()))), dict(zip(names, files, strict=True)), tuple(notes))


def in_order(points: Sequence[Point]) -> list[Point]:
    """Sort points by their keys, the first key first: values that are all numbers by size, others as they first appear."""
    places: dict[str, dict[str, int]] = {}  # key -> text of a value -> its place
    for key in dict.fromkeys(key for point in points for key in point.keys):
        values: dict[str, Any] = {_text(point.keys.get(key, MISSING)): point.keys.get(key) for point in points}
        by_size = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values())
        texts = sorted(values, key=values.__getitem__) if by_size else list(values)
        places[key] = {text: place for place, text in enumerate(texts)}
    return sorted(points, key=lambda point: [places[key][_text(point.keys.get(key, MISSING))] for key in places])


def _add(rows: dict[str, Point], point: Point, notes: list[str]) -> None:
    """Add a point to the rows by their keys. Of two points with equal keys, one that finished stays, else the first."""
    text = json.dumps(point.keys, sort_keys=True)
    other = rows.setdefault(text, point)
    if other is point:
        return
    first, second = (other, point) if other.status == "finished" or point.status != "finished" else (point, other)
    rows[text] = first
    one, two = first.final_test_accuracy, second.final_test_accuracy
    differ = f"; their test accuracies differ ({one:.4f} and {two:.4f})" if second.status == "finished" and one != two else ""
    notes.append(f"{second.name} has the settings and the seed of {first.name}, and is left out{differ}")


def differing(trees: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The keys of each tree whose values differ between the trees, in the order of their first appearance.

    Options that only one member of a family has, such as `method.rank`, follow from its name: they count only where they differ.
    """
    keys = list(dict.fromkeys(key for tree in trees for key in tree))
    values = {key: [_text(tree.get(key, MISSING)) for tree in trees] for key in keys}
    several_values = [key for key in keys if len(set(values[key])) > 1]

    def follows_from_name(key: str) -> bool:
        section = key.rpartition(".")[0] if not key.endswith(".name") else ""
        by_name = section and f"{section}.name" in several_values
        is_empty_section = f"{key}.name" in several_values  # such as `server: null` beside `server: {name: fedadam}`
        return bool(by_name or is_empty_section) and len(set(values[key]) - {_text(MISSING)}) == 1

    several_values = [key for key in several_values if not follows_from_name(key)]
    return [{key: tree[key] for key in several_values if key in tree} for tree in trees]


def _text(value: Any) -> str:
    return "" if value is MISSING else json.dumps(value, sort_keys=True)


def _settings(run: Run) -> dict[str, Any]:
    """The keys of a run's configuration that can decide its results. Keys that old versions lacked have their defaults."""
    tree = _defaults() | leaves({FORMER_NAMES.get(section, section): value for section, value in run.config.items()})
    starts = tuple(f"{name}." for name in (*NOT_A_SETTING, *MORE_TESTS))
    return {key: value for key, value in tree.items() if not f"{key}.".startswith(starts)}


@cache
def _defaults() -> dict[str, Any]:
    """The defaults of sections that are no families."""
    without_families: Any = Config.model_construct
    return leaves(without_families().model_dump(mode="json"))
