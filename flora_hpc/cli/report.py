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

START = 2000  # characters of a page in which its mark stands
MOST_RUNS = 24  # lines that can be told apart


class Format(StrEnum):
    """Of single figures."""

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
    opened = _open(runs)
    page = out or (_beside(opened[0]) if len(opened) == 1 else Path("comparison.html"))
    _check(page)
    if figures is not None:
        _make_folder(figures)

    from flora_hpc.report import page as pages  # matplotlib takes half a second
    from flora_hpc.report import papers

    _write(page, pages.make(opened, title))
    print(f"{page}: {decimal(page.stat().st_size)}")
    if figures is not None:
        try:
            written, missing = papers.save(opened, figures, (kind or Format.pdf).value)
        except OSError as error:
            raise UserError(f"--figures {figures}: cannot be written ({reason(error)}); choose a directory that can") from None
        print(f"{figures}: {', '.join(written)}")
        for name, why in missing.items():
            print(f"no {name}: {why}")


def _open(paths: list[Path]) -> list[Run]:
    """The runs, each once. Raises UserError for what is none, and for more than a page can tell apart."""
    found: dict[Path, Path] = {}
    for path in paths:
        file = locate(path).resolve()
        if file in found:
            print(f"note: {path} is given twice, and shown once")
        found.setdefault(file, path)
    if len(found) > MOST_RUNS:
        raise UserError(
            f"report: {len(found)} runs are more than the {MOST_RUNS} lines that an eye tells apart; make several pages"
        )
    needed = tuple(TABLES) if len(found) == 1 else ("rounds",)  # of 24 runs, /clients could be more than memory holds
    return [open_run(path, needed) for path in found.values()]


def _beside(run: Run) -> Path:
    return run.path.with_name("report.html") if run.path.name == "run.h5" else run.path.with_suffix(".html")


def _check(page: Path) -> None:
    """Raise UserError for a file that is not a page of ours, or a place where none can be, before any work is done."""
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
    """Whole or not at all."""
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
