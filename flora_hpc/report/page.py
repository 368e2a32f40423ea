"""One HTML page about a run, or about several: everything in one file, nothing fetched, no script. `page.html` is its template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flora_hpc.records import views
from flora_hpc.records.opened import Run
from flora_hpc.report import columns, figures, svg, template
from flora_hpc.report.figures import Drawing
from flora_hpc.report.style import DASHES, LINES, NothingError, styled

RESULTS = (
    "accuracy\nbefore", "accuracy\nat the end", "best", "after\nround", "rounds", "sent up", "sent down", "sent by\nranks",
    "time in\nrounds", "waiting",
)  # fmt: skip
ROUNDS = ("round", "clients", "loss", "accuracy", "sent up", "sent down", "by ranks", "training", "waiting", "round took")
VALIDATION = "validation"  # a column behind accuracy, of runs with validation images
PERSONAL = "personal accuracy\n(mean)"  # a column behind accuracy, of runs with tests of clients' own models
MOST_ROWS = 60  # of a table of rounds


@dataclass(frozen=True)
class Figure:
    """A figure on the page; without a picture, its text says why."""

    name: str
    kind: str  # classes of its style
    title: str
    text: str
    picture: str = ""  # SVG


@dataclass(frozen=True)
class Line:
    """A run in the tables of a comparison."""

    name: str
    note: str  # the status, unless the run finished
    colour: str
    dashes: str  # empty for a solid line
    result: list[str]
    settings: list[str]  # the settings that differ between runs


def make(runs: Sequence[Run], title: str | None = None) -> str:
    """The page. One run is explained; several are compared."""
    with styled():
        sections = {name: [_figure(drawing, runs) for drawing in drawings] for name, drawings in figures.drawings_of(runs).items()}
    alone = len(runs) == 1
    return template.render(
        "page.html",
        heading=title or (columns.label(runs[0]) if alone else f"{len(runs)} runs compared"),
        run=_one(runs[0]) if alone else None,
        comparison=None if alone else _several(runs),
        sections=sections,
        sources=", ".join(str(run.path) for run in runs),
    )


def _figure(drawing: Drawing, runs: Sequence[Run]) -> Figure:
    kind = "wide" if drawing.wide else "half"
    try:
        picture = svg.inline(drawing.draw(runs), drawing.name, drawing.title)
        return Figure(drawing.name, kind, drawing.title, drawing.caption(runs), picture)
    except NothingError as nothing:
        return Figure(drawing.name, f"{kind} none", drawing.title, str(nothing))


def _one(run: Run) -> dict[str, Any]:
    """The values of the template for a single run. Of many rounds, MOST_ROWS are in the table."""
    rows = columns.rounds(run)
    validates = len(views.validations(rows)) > 0
    table_rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).round().astype(int))]
    return {
        "status": columns.status(run),
        "remark": views.unmoved(rows),
        "headlines": columns.headlines(run),
        "settings": columns.settings(run),
        "which": f"{len(table_rows)} of {len(rows):,} rounds" if len(table_rows) < len(rows) else "All rounds",
        "columns": (*ROUNDS[:4], *([VALIDATION] if validates else []), *ROUNDS[4:]),
        "rounds": [_row(row, validates) for row in table_rows],
        "config": run.attributes["config"],
    }


def _row(row: np.void, validates: bool) -> list[str]:
    loss, names = float(row["train_loss"]), ["test_accuracy", *(["validation_accuracy"] if validates else [])]
    accuracies = [columns.percent(float(row[name])) if not np.isnan(row[name]) else "-" for name in names]
    scores = [f"{loss:.4f}" if loss == loss else "-", *accuracies]
    times = [views.seconds(float(row[f"{name}_seconds"])) for name in ("train", "wait", "round")]
    return [f"{row['round']:,}", f"{row['num_clients']:,}", *scores, *views.sent(row), *times]


def _several(runs: Sequence[Run]) -> dict[str, Any]:
    """The values of the template for a comparison of runs."""
    differences = columns.differences(runs)
    validates = any(len(views.validations(columns.rounds(run))) for run in runs)
    has_personal = any(len(views.personal(columns.rounds(run))) for run in runs)
    lines = [
        Line(
            name=name,
            note="" if run.status == "finished" else run.status,
            colour=svg.variable(LINES[number % len(LINES)]),
            dashes=dashes_of(DASHES[number // len(LINES) % len(DASHES)]),
            result=_result(run, validates, has_personal),
            settings=[texts[number] for texts in differences.values()],
        )
        for number, (run, name) in enumerate(zip(runs, columns.names(runs), strict=True))
    ]
    more = [*([VALIDATION] if validates else []), *([PERSONAL] if has_personal else [])]
    return {"results": (*RESULTS[:4], *more, *RESULTS[4:]), "lines": lines, "differences": list(differences)}


def dashes_of(line: Any) -> str:
    """The dashes of a style of matplotlib, as SVG has them in a table; empty for a solid line."""
    return "" if line == "solid" else " ".join(f"{2 * length:g}" for length in line[1])


def _result(run: Run, validates: bool, has_personal: bool) -> list[str]:
    rows = columns.rounds(run)
    tests, validations, own = views.accuracies(rows), views.validations(rows), views.personal(rows)
    if len(tests):
        best = views.best(tests)
        before = columns.percent(tests[0]["test_accuracy"]) if tests[0]["round"] == 0 else "-"
        last, most = columns.percent(tests[-1]["test_accuracy"]), columns.percent(best["test_accuracy"])
        accuracies = [before, last, most, f"{best['round']:,}"]
    else:
        accuracies = ["-"] * 4
    if validates:
        accuracies.append(columns.percent(validations[-1]["validation_accuracy"]) if len(validations) else "-")
    if has_personal:
        accuracies.append(columns.percent(own[-1]["personal_accuracy_mean"]) if len(own) else "-")
    duration = views.seconds(float(rows["round_seconds"].sum()))
    return [*accuracies, f"{len(columns.trained(run)):,}", *views.sent(rows), duration, columns.waiting(run)]
