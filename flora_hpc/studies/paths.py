"""Paths in a study become absolute, so that it can be resumed from any directory."""

from pathlib import Path
from typing import Any

from flora_hpc.studies.grid import LISTS, Grid

ALWAYS = ("path", "test_path", "root", "images_root", "store")  # last words of keys with a file or a folder
PERHAPS = ("names", "pretrained")  # with a file or something else


def absolute(value: Any, key: str = "") -> Any:
    """A value of a configuration under a dotted key, or a nested mapping, with absolute paths in place of relative ones.

    Where a key takes a file or something else, a text with a slash is a path, and so is the name of something that is there.
    """
    if isinstance(value, dict):
        return {name: absolute(part, f"{key}.{name}") for name, part in value.items()}
    word = key.rpartition(".")[2]
    if not isinstance(value, str) or word not in (*ALWAYS, *PERHAPS) or value in ("auto", "none"):
        return value
    path = Path(value).expanduser().absolute()
    return str(path) if word in ALWAYS or "/" in value or path.exists() else value


def with_absolute_paths(grid: Grid) -> Grid:
    """The grid with absolute paths in place of relative ones."""
    lists = {
        name: {key: [absolute(value, key) for value in values] for key, values in getattr(grid, name).items()} for name in LISTS
    }
    points = [{key: absolute(value, key) for key, value in point.items()} for point in grid.points]
    return grid.model_copy(update={**lists, "points": points})
