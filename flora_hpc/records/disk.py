"""Durable files: after a crash of the machine a file is whole or absent."""

import os
from contextlib import suppress
from pathlib import Path


def sync(path: Path) -> None:
    """Flush the contents of a file to its disk; for a folder, flush the names of its files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(part: Path, path: Path) -> None:
    """Rename the written file `part` to `path`. Raises OSError when the disk fails; `path` then stays as it was."""
    sync(part)
    part.replace(path)
    with suppress(OSError):  # some file systems cannot sync a folder
        sync(path.parent)
