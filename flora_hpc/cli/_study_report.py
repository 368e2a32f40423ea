"""`flora-hpc study report`: one HTML page of a study, or of any number of runs, with the mean over seeds and its interval."""

import re
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from flora_hpc import extras
from flora_hpc.cli import _pages
from flora_hpc.cli._pages import Figures, Kind, Title
from flora_hpc.errors import UserError
from flora_hpc.records.study import INDEX, Study, open_study
from flora_hpc.studies import loose

UNITS = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27}  # inches; points as TeX has them, whose \\columnwidth is in pt
LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*(in|cm|mm|pt)")
LEAST, MOST = 2.0, 30.0  # inches


def report(
    paths: Annotated[list[Path], typer.Argument(metavar="DIR|RUN...", help="directory of a study, or two run directories or more")],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE.html",
            show_default=False,
            help="the page; by default DIR/report.html, or comparison.html here",
        ),
    ] = None,
    title: Title = None,
    figures: Figures = None,
    kind: Kind = None,
    width: Annotated[
        str | None,
        typer.Option(metavar="LENGTH", help="of these figures, such as 3.3in, 8.4cm, 84mm or 240pt", show_default=False),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=TEXT",
            show_default=False,
            help="the name of a key, or of a value (VALUE=TEXT), on the page and in figures; may be repeated",
        ),
    ] = None,
) -> None:
    """Show a study on one HTML page: curves with the mean over seeds and its 95 % interval, final numbers by setting.

    Runs that no study made are grouped by what differs apart from the seed. The page needs no network and no other file.
    """
    _pages.check_format(kind, figures)
    inches = parse_width(width, figures)
    extras.need("study report", "matplotlib", "jinja2")
    study = _open(paths)
    is_study = len(paths) == 1
    page = out or (study.path / "report.html" if is_study else Path("comparison.html"))
    heading = title or (None if is_study else f"{len(study.rows)} runs compared")

    from flora_hpc.report import papers, study_figures, study_lines, study_page, study_results  # matplotlib takes half a second

    study_results.check(study, label or [])
    _pages.check(page, figures)
    results = study_results.read(study, label or [])
    _pages.write(page, study_page.make(results, heading))
    if figures is not None:
        drawings = [drawing for drawings in study_figures.drawings(results).values() for drawing in drawings]
        draw = {drawing.name: partial(drawing.draw, inches or drawing.width) for drawing in drawings}
        is_small = inches is not None and inches < study_lines.NARROW
        _pages.write_figures(figures, lambda folder, name: papers.write(draw, folder, name, is_small), kind)


def _open(paths: list[Path]) -> Study:
    """The study in a directory, or the study of several runs."""
    if len(paths) > 1:
        for path in paths:
            if (path / INDEX).is_file():
                raise UserError(f"{path}: is a study; give one study alone, or several run directories")
        runs = loose.of_runs(paths)
        for note in runs.notes:
            print(f"note: {note}")
        return runs
    if not (paths[0] / INDEX).is_file() and (paths[0] / "run.h5").is_file():
        raise UserError(f"{paths[0]}: holds a run and no study; `flora-hpc report {paths[0]}` explains it")
    return open_study(paths[0])


def parse_width(text: str | None, figures: Path | None) -> float | None:
    """The inches of --width. Raises UserError for what is no length, and where there are no figures."""
    if text is None:
        return None
    if figures is None:
        raise UserError(f"--width {text}: is for single figures; name their folder with --figures DIR")
    match = LENGTH.fullmatch(text.strip())
    if not match:
        raise UserError(f"--width {text}: is no length; give for example 3.3in, 8.4cm, 84mm or 240pt")
    inches = float(match[1]) * UNITS[match[2]]
    if not LEAST <= inches <= MOST:
        raise UserError(f"--width {text}: is {inches:.3g} inches; a figure has {LEAST:g} to {MOST:g} inches")
    return inches
