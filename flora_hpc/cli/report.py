"""`flora-hpc report`: one HTML page that explains a run, or compares several."""

from pathlib import Path
from typing import Annotated

import typer

from flora_hpc import extras
from flora_hpc.cli import _pages
from flora_hpc.cli._pages import Figures, Kind, Title
from flora_hpc.errors import UserError
from flora_hpc.records.hdf5file import locate
from flora_hpc.records.opened import Run, open_run
from flora_hpc.records.schema import TABLES

MOST_RUNS = 24  # lines that can be told apart


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run directories, or their run.h5")],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE.html",
            show_default=False,
            help="the page; by default RUN/report.html, or comparison.html here",
        ),
    ] = None,
    title: Title = None,
    figures: Figures = None,
    kind: Kind = None,
) -> None:
    """Explain a run on one HTML page, or compare several.

    The page needs no network and no other file. A page that is there already is replaced; a file that is not such a page is not.
    """
    _pages.check_format(kind, figures)
    extras.need("report", "matplotlib", "jinja2")
    open_runs = _open(runs)
    page = out or (_beside(open_runs[0]) if len(open_runs) == 1 else Path("comparison.html"))
    _pages.check(page, figures)

    from flora_hpc.report import page as pages  # matplotlib takes half a second
    from flora_hpc.report import papers

    _pages.write(page, pages.make(open_runs, title))
    if figures is not None:
        _pages.write_figures(figures, lambda folder, name: papers.save(open_runs, folder, name), kind)


def _open(paths: list[Path]) -> list[Run]:
    """Open the runs, each once. Raises UserError for a path without a run, and for more runs than a page can show."""
    paths_by_file: dict[Path, Path] = {}
    for path in paths:
        file = locate(path).resolve()
        if file in paths_by_file:
            print(f"note: {path} is given twice, and shown once")
        paths_by_file.setdefault(file, path)
    if len(paths_by_file) > MOST_RUNS:
        raise UserError(
            f"report: {len(paths_by_file)} runs are more than the {MOST_RUNS} lines that an eye tells apart; "
            "`flora-hpc study report RUN...` groups them by what differs apart from the seed"
        )
    needed = tuple(TABLES) if len(paths_by_file) == 1 else ("rounds",)  # of 24 runs, /clients could be more than memory holds
    return [open_run(path, needed) for path in paths_by_file.values()]


def _beside(run: Run) -> Path:
    return run.path.with_name("report.html") if run.path.name == "run.h5" else run.path.with_suffix(".html")
