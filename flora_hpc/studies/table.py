"""A study as a table: a row a setting with mean and spread, or a row a point.

Columns that vary from run to run, seconds and the number of ranks, are there only where they are requested. Without them a study
gives the same table however often it was killed, and on any number of ranks.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flora_hpc import yamltext
from flora_hpc.errors import UserError, did_you_mean
from flora_hpc.records import views
from flora_hpc.records.study import NUMBERS, STATUSES, Point, Study
from flora_hpc.studies.statistics import Setting, Spread, paired

DEFAULT = "final_test_accuracy"
DIFFERENCE = "difference"  # the name of a column
HEADINGS = {  # column of a point -> its heading where it is the metric, and else
    DEFAULT: ("test accuracy", "test accuracy"),
    "best_test_accuracy": ("best test accuracy", "best"),
    "final_validation_accuracy": ("validation accuracy", "validation"),
    "final_personal_accuracy": ("personal accuracy", "personal"),
    "best_validation_accuracy": ("best validation accuracy", "best validation"),
    "chosen_test_accuracy": ("test accuracy at best validation", "test at best validation"),
    "uplink_bytes": ("uplink", "uplink"),
    "downlink_bytes": ("downlink", "downlink"),
    "num_rounds": ("rounds", "rounds"),
    "best_round": ("best round", "best round"),
    "train_seconds": ("training", "training"),
    "round_seconds": ("all rounds", "all rounds"),
    "setup_seconds": ("set-up", "set-up"),
    "num_ranks": ("ranks", "ranks"),
}
ACCURACIES = tuple(name for name in HEADINGS if name.endswith("_accuracy"))
VARYING = tuple(name for name in HEADINGS if name.endswith("_seconds") or name == "num_ranks")
FOR_PEOPLE = (*ACCURACIES[:4], "uplink_bytes", *VARYING)


@dataclass(frozen=True)
class Column:
    """A column of a table: a text, a number or a spread a row. None stands where nothing was measured."""

    name: str  # for programs
    heading: str  # for people
    values: tuple[Any, ...]
    unit: str = ""  # "accuracy", "difference", "bytes", "seconds", "key", "text", or "" for a count
    has_interval: bool = False  # people see standard deviation and interval as well, not the mean alone
    for_people: bool = True  # False: only programs get it


def metric_of(name: str, choices: Sequence[str] = tuple(NUMBERS)) -> str:
    """The column of a point that a user names; 'validation_accuracy' is the final one. Raises UserError for other names."""
    for column in (name, f"final_{name}"):
        if column in choices:
            return column
    near = did_you_mean(name, [short for column in choices for short in (column.removeprefix("final_"), column)])
    is_other = any(column in NUMBERS for column in (name, f"final_{name}"))
    why = "is no accuracy" if is_other else "there is no such column of results"
    raise UserError(f"--metric {name}: {why}{near} ({', '.join(choices)})")


def of_settings(groups: Sequence[Setting], metric: str = DEFAULT, with_varying: bool = False) -> list[Column]:
    """A row a setting: its keys, the number of finished points, the metric with its interval, and means of other columns."""
    spreads = {name: tuple(group.spread(name) for group in groups) for name in _names(metric, with_varying)}
    numbers, totals = tuple(value.n for value in spreads[metric]), tuple(len(group.points) for group in groups)
    columns = [*_keys([group.keys for group in groups]), Column("n", "n", numbers)]
    columns.append(Column("num_points", "of", totals, for_people=numbers != totals))
    for name, values in spreads.items():
        if name == metric or any(value.n for value in values):
            is_metric = name == metric
            columns.append(
                Column(name, HEADINGS[name][not is_metric], values, unit(name), is_metric, is_metric or name in FOR_PEOPLE)
            )
    return columns


def of_points(points: Sequence[Point], metric: str = DEFAULT, with_varying: bool = False) -> list[Column]:
    """A row a point: its name, its keys with the seed, its status and its results."""
    names, statuses = tuple(point.name for point in points), tuple(point.status for point in points)
    columns = [Column("name", "name", names, "text"), *_keys([point.keys for point in points])]
    columns.append(Column("status", "status", statuses, "text"))
    for name in _names(metric, with_varying):
        values = tuple(_result(point, name) for point in points)
        if name == metric or any(value is not None for value in values):
            is_seen = name in (metric, "num_rounds", "best_round", *FOR_PEOPLE)
            columns.append(Column(name, HEADINGS[name][name != metric], values, unit(name), for_people=is_seen))
    return columns


def against(groups: Sequence[Setting], reference: Mapping[str, Any], metric: str = DEFAULT) -> list[Column]:
    """The differences of the metric to a reference, paired by seed: mean and interval, and the number of pairs.

    The reference of a setting has the values of `reference`, and in all other keys those of the setting. Where only one setting has
    the values of `reference`, it is the reference of all. A key that a setting lacks is null. Raises UserError where no setting has
    them.
    """
    all_keys = {key for group in groups for key in group.keys}
    matching = [
        group for group in groups if all(key in all_keys and equal(group.keys.get(key), value) for key, value in reference.items())
    ]
    if not matching:
        raise UserError(f"--against {words(reference)}: {_why_none(groups, reference)}")

    def difference(group: Setting) -> Spread | str | None:
        alike = [other for other in matching if not_null(other.keys) == not_null(group.keys | dict(reference))]
        other = alike[0] if alike else matching[0] if len(matching) == 1 else None
        return "reference" if other is group else paired(group, other, metric) if other else None

    values = tuple(difference(group) for group in groups)
    pairs = tuple(value.n if isinstance(value, Spread) else None for value in values)
    what = "difference" if unit(metric) == "accuracy" else unit(metric)
    return [Column(DIFFERENCE, "difference", values, what, has_interval=True), Column("pairs", "pairs", pairs)]


def not_null(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys with a value: a setting without a key equals one where it is null."""
    return {key: value for key, value in keys.items() if value is not None}


def words(keys: Mapping[str, Any], separator: str = ",") -> str:
    """'method.name=flora,client.lr=0.001'."""
    return separator.join(f"{key}={yamltext.inline(value)}" for key, value in keys.items())


def equal(one: Any, other: Any) -> bool:
    """Whether two values of a key are the same; 1 is 1.0, but true is not 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def counts(study: Study, num_settings: int) -> str:
    """'60 points in 12 settings: 58 finished, 2 failed'."""
    numbers = ", ".join(f"{study.count(status)} {status}" for status in STATUSES if study.count(status))
    return f"{views.count(len(study.rows), 'point')} in {views.count(num_settings, 'setting')}" + (
        f": {numbers}" if numbers else ""
    )


def failures(study: Study) -> list[str]:
    """A line a failed point: its name, its keys and its message."""
    points = [point for point in study.rows if point.status == "failed"]
    return [f"{point.name} ({words(point.keys, ', ')}): {' '.join(point.message.split())}" for point in points]


def unit(name: str) -> str:
    """The unit of a column of a point; empty for a count."""
    return next((kind for kind in ("accuracy", "bytes", "seconds") if name.endswith(f"_{kind}")), "")


def _names(metric: str, with_varying: bool) -> list[str]:
    """The columns of results in their order, the metric first."""
    return [metric, *(name for name in HEADINGS if name != metric and (with_varying or name not in VARYING))]


def _keys(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """A column for each key of any row, the seed last."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    names.sort(key="seed".__eq__)
    return [Column(name, name, tuple(_key(row, name) for row in rows), "key") for name in names]


def _key(row: Mapping[str, Any], name: str) -> str | None:
    """The text of a key's value; None where the row does not have the key."""
    return yamltext.inline(row[name]) if name in row else None


def _result(point: Point, name: str) -> Any:
    value = getattr(point, name)
    is_unknown = point.status != "finished" and not point.num_rounds
    return None if is_unknown or (name == "best_round" and value < 0) or math.isnan(value) else value


def _why_none(groups: Iterable[Setting], reference: Mapping[str, Any]) -> str:
    """Why no setting has the values of a reference: an unknown key, an unknown value, or this combination."""
    keys = list(dict.fromkeys(key for group in groups for key in group.keys))
    for key, value in reference.items():
        if key not in keys:
            return f"{key} does not differ between the settings{did_you_mean(key, keys)} ({', '.join(keys) or 'no key does'})"
        values = {yamltext.inline(group.keys.get(key)): group.keys.get(key) for group in groups}
        if not any(equal(value, other) for other in values.values()):
            text = yamltext.inline(value)
            return f"no setting has {key}={text}{did_you_mean(text, values)} ({', '.join(values)})"
    return "no setting has all of these values; give fewer of them"
