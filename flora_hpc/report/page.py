"""One HTML page about a run, or about several: everything in one file, nothing fetched, no script."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files

import numpy as np

from flora_hpc import __version__
from flora_hpc.records import views
from flora_hpc.records.opened import Run
from flora_hpc.report import facts, figures, svg
from flora_hpc.report.figures import Drawing
from flora_hpc.report.mark import MARK
from flora_hpc.report.style import DASHES, LINES, NothingError, styled

RESULTS = (
    "accuracy\nbefore", "accuracy\nat the end", "best", "after\nround", "rounds", "sent up", "sent down", "sent by\nranks",
    "time in\nrounds", "waiting",
)  # fmt: skip
ROUNDS = ("round", "clients", "loss", "accuracy", "sent up", "sent down", "by ranks", "training", "waiting", "round took")
LINE, BREAK = "\n", "<br>"
MOST_ROWS = 60  # of a table of rounds


def make(runs: Sequence[Run], title: str | None = None) -> str:
    """The page. One run is explained; several are compared."""
    heading = title or (facts.label(runs[0]) if len(runs) == 1 else f"{len(runs)} runs compared")
    head = _one(runs[0]) if len(runs) == 1 else _several(runs)
    with styled():
        sections = [_section(name, drawings, runs) for name, drawings in figures.of(runs).items()]
    tail = _numbers(runs[0]) + _config(runs[0]) if len(runs) == 1 else ""
    style = files("flora_hpc.report").joinpath("page.css").read_text(encoding="utf-8")
    dark = f"@media screen and (prefers-color-scheme:dark){{:root{{{svg.variables(True)}}}}}"
    sources = ", ".join(str(run.path) for run in runs)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'{MARK}<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,"><title>{escape(heading)}</title>'
        f"<style>:root{{{svg.variables(False)}}}{dark}\n{style}</style></head>\n"
        f"<body><main><h1>{escape(heading)}</h1>\n{head}\n{''.join(sections)}{tail}"
        f"<footer>Made by flora-hpc {__version__} from {escape(sources)}.</footer></main></body></html>\n"
    )


def _one(run: Run) -> str:
    boxes = "".join(
        f'<div class="fact"><span>{escape(what)}</span><b>{escape(value)}</b><small>{escape(remark)}</small></div>'
        for what, value, remark in facts.headlines(run)
    )
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in facts.settings(run).items()
    )
    remark = views.unmoved(facts.rounds(run))
    warning = f"<p><b>Not learned:</b> {escape(remark)}.</p>" if remark else ""
    return (
        f'<p class="muted">{escape(facts.status(run))}</p>{warning}<div class="facts">{boxes}</div>'
        f'<div class="scroll"><table class="setting"><tbody>{rows}</tbody></table></div>'
    )


def _several(runs: Sequence[Run]) -> str:
    names = facts.names(runs)
    return f"<h2>Results</h2>{_results(runs, names)}<h2>Settings that differ</h2>{_differences(runs, names)}"


def _results(runs: Sequence[Run], names: Sequence[str]) -> str:
    rows = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        note = "" if run.status == "finished" else f' <span class="muted">({escape(run.status)})</span>'
        rows.append(f"{_run(number, name, note)}{_cells(_result(run))}")
    return _table(f"<th scope=col>run</th>{_headings(RESULTS)}", rows)


def _result(run: Run) -> list[str]:
    rows = facts.rounds(run)
    tested = views.accuracies(rows)
    if len(tested):
        best = views.best(tested)
        before = facts.percent(tested[0]["test_accuracy"]) if tested[0]["round"] == 0 else "-"
        last, most = facts.percent(tested[-1]["test_accuracy"]), facts.percent(best["test_accuracy"])
        accuracies = [before, last, most, f"{best['round']:,}"]
    else:
        accuracies = ["-"] * 4
    took = views.seconds(float(rows["round_seconds"].sum()))
    return [*accuracies, f"{len(facts.trained(run)):,}", *views.sent(rows), took, facts.waiting(run)]


def _differences(runs: Sequence[Run], names: Sequence[str]) -> str:
    found = facts.differences(runs)
    if not found:
        return "<p>None: all runs have the same settings.</p>"
    rows = []
    for number, name in enumerate(names):
        cells = "".join(f"<td>{escape(texts[number])}</td>" for texts in found.values())
        rows.append(f"{_run(number, name)}{cells}")
    return _table("<th scope=col>run</th>" + "".join(f"<th scope=col>{escape(key)}</th>" for key in found), rows)


def _table(top: str, rows: Sequence[str]) -> str:
    """A table of cells that are HTML already; a wide one is scrolled by itself."""
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _headings(texts: Sequence[str]) -> str:
    """Headings of numbers; a line break may stand in them."""
    return "".join(f'<th scope=col class="n">{escape(text).replace(LINE, BREAK)}</th>' for text in texts)


def _cells(texts: Sequence[str]) -> str:
    return "".join(f'<td class="n">{escape(text)}</td>' for text in texts)


def _run(number: int, name: str, note: str = "") -> str:
    """The first cell of a run's row: its line and its name."""
    return f'<th scope=row class="run">{_swatch(number)} {escape(name)}{note}</th>'


def _swatch(number: int) -> str:
    """The line of a run, as figures draw it."""
    colour = svg.variable(LINES[number % len(LINES)])
    dashes = DASHES[number // len(LINES) % len(DASHES)]
    pattern = "" if dashes == "solid" else f' stroke-dasharray="{" ".join(f"{2 * length:g}" for length in dashes[1])}"'
    line = f'<line x1="1" x2="33" y1="4" y2="4" style="stroke:{colour}" stroke-width="2.5"{pattern}/>'
    return f'<svg width="34" height="8" aria-hidden="true">{line}</svg>'


def _section(name: str, drawings: Sequence[Drawing], runs: Sequence[Run]) -> str:
    return f'<h2>{escape(name)}</h2><div class="figures">{"".join(_figure(drawing, runs) for drawing in drawings)}</div>\n'


def _figure(drawing: Drawing, runs: Sequence[Run]) -> str:
    kind = "wide" if drawing.wide else "half"
    try:
        picture = svg.inline(drawing.draw(runs), drawing.name, drawing.title)
        inside = f'{_caption(drawing.title, drawing.say(runs))}<div class="picture">{picture}</div>'
    except NothingError as nothing:
        kind += " none"
        inside = _caption(drawing.title, str(nothing))
    return f'<figure class="{kind}" id="{drawing.name}">{inside}</figure>\n'


def _caption(title: str, text: str) -> str:
    return f"<figcaption><h3>{escape(title)}</h3><p>{escape(text)}</p></figcaption>"


def _numbers(run: Run) -> str:
    """The rounds as a table for those who want numbers; of many rounds, some."""
    rows = facts.rounds(run)
    if not len(rows):
        return ""
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).round().astype(int))]
    which = f"{len(chosen)} of {len(rows):,} rounds" if len(chosen) < len(rows) else "All rounds"
    table = _table(_headings(ROUNDS), [_cells(_row(row)) for row in chosen])
    return f"<details><summary>{which} as numbers</summary>{table}</details>"


def _row(row: np.void) -> list[str]:
    loss, accuracy = float(row["train_loss"]), float(row["test_accuracy"])
    known = [f"{loss:.4f}" if loss == loss else "-", facts.percent(accuracy) if accuracy == accuracy else "-"]
    took = [views.seconds(float(row[f"{name}_seconds"])) for name in ("train", "wait", "round")]
    return [f"{row['round']:,}", f"{row['num_clients']:,}", *known, *views.sent(row), *took]


def _config(run: Run) -> str:
    return f"<details><summary>The whole configuration</summary><pre>{escape(run.attributes['config'])}</pre></details>"
