"""Each figure of a report as a file of its own, for a paper."""

import os
from collections.abc import Sequence
from pathlib import Path

from flora_hpc.records.opened import Run
from flora_hpc.report import figures
from flora_hpc.report.style import NothingError, styled

NO_DATE = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}  # the same run gives the same bytes


def save(runs: Sequence[Run], folder: Path, kind: str) -> tuple[list[str], dict[str, str]]:
    """Write the figures into `folder`, as png, svg or pdf. Returns the names of the files, and why figures are missing."""
    names, missing = [], {}
    for drawing in (drawing for drawings in figures.drawings_of(runs).values() for drawing in drawings):
        path = folder / f"{drawing.name}.{kind}"
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with styled():
                drawing.draw(runs).savefig(part, format=kind, dpi=300, metadata=NO_DATE[kind])
            part.replace(path)
            names.append(path.name)
        except NothingError as nothing:
            missing[drawing.name] = str(nothing)
        finally:
            part.unlink(missing_ok=True)
    return names, missing
