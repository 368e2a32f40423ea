"""Options of the commands that write a page and figures, and the files they write."""

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from flora_hpc.errors import UserError, reason

START = 2000  # characters of a page that hold its mark


class Format(StrEnum):
    """File formats of single figures."""

    png = "png"
    svg = "svg"
    pdf = "pdf"


Title = Annotated[str | None, typer.Option(help="heading of the page", show_default=False)]
Figures = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="also write each figure into a file of its own, for a paper", show_default=False),
]
Kind = Annotated[Format | None, typer.Option("--format", help="of these files; pdf when not said", show_default=False)]


def check_format(kind: Format | None, figures: Path | None) -> None:
    """Raise UserError for a format without a folder for figures."""
    if kind and figures is None:
        raise UserError(f"--format {kind.value}: is for single figures; name their folder with --figures DIR")


def check(page: Path, figures: Path | None, option: str = "-o") -> None:
    """Raise UserError, before any work, for a file that is no report page, or a place where nothing can be written.

    The folder of figures is made.
    """
    from flora_hpc.report.mark import MARK

    if page.is_dir():
        raise UserError(f"{option} {page}: is a directory; name a file in it, such as {page / 'report.html'}")
    if not page.parent.is_dir():
        raise UserError(f"{option} {page}: there is no directory {page.parent}; make it, or choose another place")
    try:
        is_other = page.exists() and MARK.encode() not in page.read_bytes()[:START]
    except OSError as error:
        raise UserError(f"{option} {page}: cannot be read ({reason(error)}); choose another name") from None
    if is_other:
        raise UserError(
            f"{option} {page}: is there already and is no page of `flora-hpc report`; choose another name, or remove it"
        )
    if figures is not None:
        try:
            figures.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--figures {figures}: cannot be made ({reason(error)}); choose another directory") from None


def write(page: Path, text: str) -> None:
    """Write the page, as a whole or not at all, and print its size."""
    part = page.with_name(f".{page.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
        part.replace(page)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"-o {page}: cannot be written ({reason(error)}); choose another place with -o") from None
    print(f"{page}: {decimal(page.stat().st_size)}")


def write_figures(folder: Path, save: Callable[[Path, str], tuple[list[str], dict[str, str]]], kind: Format | None) -> None:
    """Write the figures with `save`, and print their names, and why others are missing."""
    try:
        names, missing = save(folder, (kind or Format.pdf).value)
    except OSError as error:
        raise UserError(f"--figures {folder}: cannot be written ({reason(error)}); choose a directory that can") from None
    print(f"{folder}: {', '.join(names)}")
    for name, why in missing.items():
        print(f"no {name}: {why}")
