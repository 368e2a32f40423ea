"""Each figure of a report as a file of its own, for a paper."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from flora_hpc.records.opened import Run
from flora_hpc.report import figures
from flora_hpc.report.style import NothingError, styled

NO_DATE = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}  # the same run gives the same bytes


def save(runs: Sequence[Run], folder: Path, kind: str) -> tuple[list[str], dict[str, str]]:
    """Write the figures into `folder`, as png, svg or pdf. Returns the names of the files, and why figures are missing."""
    drawings = [drawing for drawings in figures.drawings_of(runs).values() for drawing in drawings]
    return write({drawing.name: partial(drawing.draw, runs) for drawing in drawings}, folder, kind)


def write(
    draw: Mapping[str, Callable[[], Figure]], folder: Path, kind: str, small: bool = False
) -> tuple[list[str], dict[str, str]]:
    """Draw figures and write them into `folder`, by name; `small` is the style of narrow figures. Returns the same as `save`."""
    names, missing = [], {}
    for name, drawn in draw.items():
        path = folder / f"{name}.{kind}"
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with styled(small):
                drawn().savefig(part, format=kind, dpi=300, metadata=NO_DATE[kind])
            part.replace(path)
            names.append(path.name)
        except NothingError as nothing:
            missing[name] = str(nothing)
        finally:
            part.unlink(missing_ok=True)
    return names, missing
