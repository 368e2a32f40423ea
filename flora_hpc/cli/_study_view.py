"""Show a study while this process plays it: what `study watch` shows, from a thread of rank 0."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from flora_hpc.cli._study_watch import show_lines, show_live
from flora_hpc.cli.watch import Printer
from flora_hpc.errors import UserError
from flora_hpc.records.followstudy import FollowedStudy, StudySnapshot

SECONDS = 1.0  # between two looks at the files


@contextmanager
def watching(folder: Path, live: bool) -> Iterator[None]:
    """Inside, show the points of the study: a live table, or a line for each point that ends."""
    over = threading.Event()

    def snapshots() -> Iterator[StudySnapshot]:
        study, is_last = FollowedStudy(folder), False
        while not is_last:
            is_last = over.is_set()
            if (snapshot := study.poll()) is not None:
                yield snapshot
            over.wait(SECONDS)

    def show() -> None:
        console = Console(highlight=False, force_terminal=True if live else None)
        with suppress(UserError, StopIteration):  # files that cannot be read: the study itself says so
            show_live(console, snapshots()) if live else show_lines(Printer(console), snapshots())

    thread = threading.Thread(target=show, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
