"""One HTML page of a study: curves with bands, small multiples, final numbers by setting. `study.html` is its template."""

from dataclasses import dataclass

import numpy as np
from rich.filesize import decimal

from flora_hpc.records import sentences, views
from flora_hpc.records.opened import Run
from flora_hpc.records.study import Point
from flora_hpc.report import study_captions, study_figures, study_grid, svg, template
from flora_hpc.report.columns import percent
from flora_hpc.report.page import Figure, dashes_of
from flora_hpc.report.study_figures import Drawing
from flora_hpc.report.study_lines import style_of
from flora_hpc.report.study_results import Group, Results
from flora_hpc.report.style import NothingError, styled
from flora_hpc.studies import table
from flora_hpc.studies.statistics import Spread, settings

MOST_ROWS = 30  # settings in an open table; of more, the best MOST_BEST are, and all are folded
MOST_BEST = 10
MOST_NAMED = 6  # points that failed alike, and runs that cannot be read
MOST_MESSAGES = 20
COMMON = {  # a line of the first run's description -> sections of the configuration that must not vary
    "model": ("model",),
    "method": ("method",),
    "algorithm": ("algorithm", "aggregator"),
    "data": ("data", "partition", "cohort"),
    "client": ("client",),
}


@dataclass(frozen=True)
class Row:
    """A setting in a table."""

    colour: str  # empty without a line of its own
    dashes: str
    values: list[str]  # of the keys
    numbers: list[str]


def make(results: Results, title: str | None = None) -> str:
    """The page."""
    study = results.study
    with styled():
        sections = {name: [_figure(drawing) for drawing in drawn] for name, drawn in study_figures.drawings(results).items()}
    rows = [_row(results, group) for group in results.groups]
    best = [_row(results, group) for group in results.ranked[:MOST_BEST]] if len(rows) > MOST_ROWS else []
    first = _first(results)
    return template.render(
        "study.html",
        heading=title or study.path.resolve().name,
        status=f"{table.counts(study, len(settings(study.rows)))}.",
        headlines=_headlines(results),
        settings=_settings(results, first),
        problems=results.unreadable[:MOST_NAMED],
        num_problems=len(results.unreadable),
        sections=sections,
        keys=[results.names.key(key) for key in table_keys(results)],
        columns=columns(results),
        rows=rows,
        best=best,
        num_failed=len(results.failed),
        failures=_failures(results),
        most=MOST_MESSAGES,
        first=first,
        source=study.path,
    )


def _figure(drawing: Drawing) -> Figure:
    kind = "wide" if drawing.wide else "half"
    try:
        picture = svg.inline(drawing.draw(drawing.width), drawing.name, drawing.title)
        return Figure(drawing.name, kind, drawing.title, drawing.caption(), picture)
    except NothingError as nothing:
        return Figure(drawing.name, f"{kind} none", drawing.title, str(nothing))


def _first(results: Results) -> Run | None:
    """The run of the first finished point that can be read."""
    points = [point for group in results.groups for point in group.setting.points if point.status == "finished"]
    readable = [point for point in points if not any(f"/{point.name}/" in sentence for sentence in results.unreadable)]
    return next((run for point in readable if (run := results.study.run(point, ("topology",)))), None)


def _headlines(results: Results) -> list[tuple[str, str, str]]:
    """The main numbers: name, number and remark."""
    lines = []
    for word, place in (("best", 0), ("worst", -1)):
        if results.ranked and (word == "best" or len(results.ranked) > 1):
            group = results.ranked[place]
            lines.append((f"{word} final accuracy", study_captions.group_text(results, group), results.name(group)))
    points = [point for point in results.study.rows if point.status == "finished"]
    traffic = [point.uplink_bytes + point.downlink_bytes for point in points]
    low, high = decimal(min(traffic)), decimal(max(traffic))
    lines.append(("federation traffic", low if low == high else f"{low} to {high}", "a run, up and down"))
    total, training = (sum(getattr(point, name) for point in points) for name in ("round_seconds", "train_seconds"))
    start = views.seconds(sum(point.setup_seconds for point in points))
    remark = f"of all finished runs; {views.seconds(training)} of it in training alone, start-up {start}"
    return [*lines, ("time in rounds", views.seconds(total), remark)]


def _settings(results: Results, first: Run | None) -> dict[str, str]:
    """The keys of the grid with their values, the seeds, and what all points have in common."""
    groups, names = settings(results.study.rows), results.names
    grid = study_grid.layout(groups)
    lines = {names.key(axis.key): ", ".join(names.value(keys, axis.key) for keys in axis.samples) for axis in grid.axes}
    for key, leader in grid.along.items():
        lines[names.key(key)] = f"changes with {names.key(leader)}"
    seeds = list(dict.fromkeys(str(point.keys["seed"]) for point in results.study.rows if "seed" in point.keys))
    counts = {len(group.points) for group in groups}
    each = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    lines["settings"] = f"{len(groups):,}, {each} point{'s' * (counts != {1})} each"
    lines["settings"] += "" if len(results.groups) == len(groups) else f"; {len(results.groups):,} have a finished point"
    if seeds:
        lines["seeds"] = ", ".join(seeds[:10]) + (f", ... ({len(seeds):,} seeds)" if len(seeds) > 10 else "")
    if first:
        varied = {key.partition(".")[0] for point in results.study.rows for key in point.setting}
        texts = sentences.describe(first.attributes, first.tables["topology"])
        lines |= {name: texts[name] for name, sections in COMMON.items() if name in texts and not varied & set(sections)}
        if "data" not in lines and "data" not in varied:
            lines["data"] = sentences.dataset(first.attributes)
    return lines


def _failures(results: Results) -> list[tuple[str, str]]:
    """Each message, with the points that failed with it."""
    names: dict[str, list[str]] = {}
    for point in results.failed:
        names.setdefault(point.message, []).append(_name(results, point))
    return [
        (message, "; ".join(points[:MOST_NAMED]) + (f"; and {len(points) - MOST_NAMED:,} more" if len(points) > MOST_NAMED else ""))
        for message, points in names.items()
    ]


def _name(results: Results, point: Point) -> str:
    """A point as its keys say it, with its seed; its name where it has no keys."""
    seed = f", seed {point.keys['seed']}" if "seed" in point.keys else ""
    return (results.names.setting(point.setting, list(point.setting)) + seed) if point.keys else point.name


def table_keys(results: Results) -> list[str]:
    """The keys that have a column: those that vary."""
    return [*results.grid.keys, *results.grid.along]


def columns(results: Results) -> list[str]:
    """The names of the numbers in the table; validation and personal accuracy only where some point has them."""
    more = [name for name, column in _optional() if any(group.setting.spread(column).n for group in results.groups)]
    return [
        "n",
        "final\naccuracy",
        "95 % interval\nof the mean",
        "best",
        *more,
        "sent up\nand down",
        "time in\ntraining",
        "time in\nrounds",
    ]


def _optional() -> list[tuple[str, str]]:
    return [
        ("validation", "final_validation_accuracy"),
        ("at best\nvalidation", "chosen_test_accuracy"),
        ("personal", "final_personal_accuracy"),
    ]


def _row(results: Results, group: Group) -> Row:
    setting, final = group.setting, group.final
    style = style_of(results, group) or {"color": "", "linestyle": "solid"}
    shown = columns(results)
    interval = f"{100 * final.low:.2f} to {percent(final.high)}" if final.n > 1 else "-"
    more = [_mean(setting.spread(column)) for name, column in _optional() if name in shown]
    traffic = np.mean(setting.values("uplink_bytes") + setting.values("downlink_bytes"))
    times = [views.seconds(setting.spread(name).mean) for name in ("train_seconds", "round_seconds")]
    numbers = [f"{len(setting.values('num_rounds'))}", _mean(final), interval, _mean(setting.spread("best_test_accuracy")), *more]
    return Row(
        colour=svg.variable(style["color"]) if style["color"] else "",
        dashes=dashes_of(style["linestyle"]),
        values=[results.names.value(setting.keys, key) for key in table_keys(results)],
        numbers=[*numbers, decimal(round(float(traffic))), *times],
    )


def _mean(spread: Spread) -> str:
    """'93.20 ± 0.41 %'."""
    if not spread.n:
        return "-"
    return percent(spread.mean) if spread.n == 1 else f"{100 * spread.mean:.2f} ± {percent(spread.std)}"
