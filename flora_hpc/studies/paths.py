"""Paths in a study become absolute, so that it can be resumed from any directory."""

from pathlib import Path
from typing import Any

from flora_hpc.studies.grid import LISTS, Grid

PATHS = ("path", "test_path", "root", "images_root", "names", "store", "pretrained")  # last words of keys with a file or folder


def absolute(value: Any, key: str = "") -> Any:
    """A value of a configuration under a dotted key, or a nested mapping, with absolute paths in place of relative ones.

    A text is a path where its key takes one, and where it has a slash or something of this name is there.
    """
    if isinstance(value, dict):
        return {name: absolute(part, f"{key}.{name}") for name, part in value.items()}
    if not isinstance(value, str) or key.rpartition(".")[2] not in PATHS or value in ("auto", "none"):
        return value
    path = Path(value).expanduser().absolute()
    return str(path) if "/" in value or path.exists() else value


def with_absolute_paths(grid: Grid) -> Grid:
    """The grid with absolute paths in place of relative ones."""
    lists = {
        name: {key: [absolute(value, key) for value in values] for key, values in getattr(grid, name).items()} for name in LISTS
    }
    points = [{key: absolute(value, key) for key, value in point.items()} for point in grid.points]
    return grid.model_copy(update={**lists, "points": points})
