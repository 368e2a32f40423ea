"""Files that are whole or not there, also after the machine went down."""

import os
from contextlib import suppress
from pathlib import Path


def sync(path: Path) -> None:
    """Return when what was written to a file is on its disk; of a folder, when the names of its files are."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def commit(part: Path, path: Path) -> None:
    """Give a written file its own name. Raises OSError when the disk does not take it; what had the name has it still then."""
    sync(part)
    part.replace(path)
    with suppress(OSError):  # some file systems cannot sync a folder
        sync(path.parent)
