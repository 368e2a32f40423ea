"""The file at a path, or why there is none."""

import os
import re
from pathlib import Path

from flora_hpc.errors import UserError, did_you_mean

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:")  # pathlib leaves one slash of two
WINDOWS = re.compile(r"[A-Za-z]:[\\/]")


def expanded(key: str, path: Path) -> Path:
    """The path without ~. Raises UserError where that stands for nobody."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(f"{key}: {path} begins with ~ and no known user; write the path out") from None


def file_at(key: str, path: Path, siblings: str = "*") -> Path:
    """The file at `path`, which option `key` gives, ~ expanded; `siblings` is a pattern of names that may be meant.

    Raises UserError where there is none.
    """
    path = expanded(key, path)
    if not os.path.isfile(path):  # noqa: PTH113 -- pathlib raises for names that are too long
        raise UserError(f"{key}: {why_absent(path, siblings)}")
    return path


def why_absent(path: Path, siblings: str = "*") -> str:
    """Why there is no file at a path, in one clause."""
    text = str(path)
    if WINDOWS.match(text):
        return f"there is no file {path}, which is a path of Windows; write it as this system has it"
    if ADDRESS.match(text):
        return f"{text} is an address; data must be files here, so download it first"
    if os.path.isdir(path):  # noqa: PTH112
        return f"{path} is a folder; give a file"
    if os.path.exists(path):  # noqa: PTH110
        return f"{path} is a pipe or a device; give a file"
    nearby = [file.name for file in path.parent.glob(siblings)] if os.path.isdir(path.parent) else []  # noqa: PTH112
    return f"there is no file {path}{did_you_mean(path.name, nearby)}"
