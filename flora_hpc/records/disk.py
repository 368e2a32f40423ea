"""Durable files: after a crash of the machine a file is whole or absent."""

import os
import uuid
from contextlib import suppress
from pathlib import Path


def sync(path: Path) -> None:
    """Flush the contents of a file to its disk; for a folder, flush the names of its files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def part_of(path: Path) -> Path:
    """A name beside `path` that no other process uses, for what is written before it replaces `path`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raises OSError."""
    part = part_of(path)
    try:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
        commit(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def commit(part: Path, path: Path) -> None:
    """Rename the written file `part` to `path`. Raises OSError when the disk fails; `path` then stays as it was."""
    sync(part)
    part.replace(path)
    with suppress(OSError):  # some file systems cannot sync a folder
        sync(path.parent)
