"""`flora-hpc report`: one HTML page that explains a run, or compares several."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from flora_hpc import extras
from flora_hpc.errors import UserError, reason
from flora_hpc.records.hdf5file import locate
from flora_hpc.records.opened import Run, open_run
from flora_hpc.records.schema import TABLES

START = 2000  # characters of a page that hold its mark
MOST_RUNS = 24  # lines that can be told apart


class Format(StrEnum):
    """File formats of single figures."""

    png = "png"
    svg = "svg"
    pdf = "pdf"


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
    title: Annotated[str | None, typer.Option(help="heading of the page", show_default=False)] = None,
    figures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="also write each figure into a file of its own, for a paper", show_default=False),
    ] = None,
    kind: Annotated[Format | None, typer.Option("--format", help="of these files; pdf when not said", show_default=False)] = None,
) -> None:
    """Explain a run on one HTML page, or compare several.

    The page needs no network and no other file. A page that is there already is replaced; a file that is not such a page is not.
    """
    if kind and figures is None:
        raise UserError(f"--format {kind.value}: is for single figures; name their folder with --figures DIR")
    extras.need("report", "matplotlib", "jinja2")
    open_runs = _open(runs)
    page = out or (_beside(open_runs[0]) if len(open_runs) == 1 else Path("comparison.html"))
    _check(page)
    if figures is not None:
        _make_folder(figures)

    from flora_hpc.report import page as pages  # matplotlib takes half a second
    from flora_hpc.report import papers

    _write(page, pages.make(open_runs, title))
    print(f"{page}: {decimal(page.stat().st_size)}")
    if figures is not None:
        try:
            names, missing = papers.save(open_runs, figures, (kind or Format.pdf).value)
        except OSError as error:
            raise UserError(f"--figures {figures}: cannot be written ({reason(error)}); choose a directory that can") from None
        print(f"{figures}: {', '.join(names)}")
        for name, why in missing.items():
            print(f"no {name}: {why}")


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
            f"report: {len(paths_by_file)} runs are more than the {MOST_RUNS} lines that an eye tells apart; make several pages"
        )
    needed = tuple(TABLES) if len(paths_by_file) == 1 else ("rounds",)  # of 24 runs, /clients could be more than memory holds
    return [open_run(path, needed) for path in paths_by_file.values()]


def _beside(run: Run) -> Path:
    return run.path.with_name("report.html") if run.path.name == "run.h5" else run.path.with_suffix(".html")


def _check(page: Path) -> None:
    """Raise UserError, before any work, for a file that is no report page, or a place where no page can be written."""
    from flora_hpc.report.mark import MARK

    if page.is_dir():
        raise UserError(f"-o {page}: is a directory; name a file in it, such as {page / 'report.html'}")
    if not page.parent.is_dir():
        raise UserError(f"-o {page}: there is no directory {page.parent}; make it, or choose another place")
    try:
        is_other = page.exists() and MARK.encode() not in page.read_bytes()[:START]
    except OSError as error:
        raise UserError(f"-o {page}: cannot be read ({reason(error)}); choose another name") from None
    if is_other:
        raise UserError(f"-o {page}: is there already and is no page of `flora-hpc report`; choose another name, or remove it")


def _write(page: Path, text: str) -> None:
    """Write the page as a whole or not at all."""
    part = page.with_name(f".{page.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
        part.replace(page)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"-o {page}: cannot be written ({reason(error)}); choose another place with -o") from None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--figures {folder}: cannot be made ({reason(error)}); choose another directory") from None
