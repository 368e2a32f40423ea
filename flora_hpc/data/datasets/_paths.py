"""Find the file at a path, or say why there is none."""

import os
from pathlib import Path

from flora_hpc.errors import UserError, at_home, did_you_mean
from flora_hpc.filekinds import elsewhere


def file_at(key: str, path: Path, siblings: str = "*") -> Path:
    """The file at `path`, the value of option `key`, with ~ expanded.

    Raises UserError where there is no file; `siblings` is a pattern of the names that it may suggest.
    """
    path = at_home(path, key=key)
    if not os.path.isfile(path):  # noqa: PTH113 -- pathlib raises for names that are too long
        raise UserError(f"{key}: {why_absent(path, siblings)}")
    return path


def why_absent(path: Path, siblings: str = "*") -> str:
    """Why there is no file at `path`, in one clause."""
    if (why := elsewhere(path)) is not None:
        return f"{path} is {why}"
    if os.path.isdir(path):  # noqa: PTH112
        return f"{path} is a folder; give a file"
    if os.path.exists(path):  # noqa: PTH110
        return f"{path} is a pipe or a device; give a file"
    nearby = [file.name for file in path.parent.glob(siblings)] if os.path.isdir(path.parent) else []  # noqa: PTH112
    return f"there is no file {path}{did_you_mean(path.name, nearby)}"
