"""A time limit that holds inside MPI, too, where Python's threads and signal handlers do not run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

WATCHER = """
import os, select, signal, sys
seconds, rank_process, message = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if not select.select([0], [], [], seconds)[0]:
    if message:
        print(message, file=sys.stderr, flush=True)
    os.kill(rank_process, signal.SIGKILL)
"""
LATER = 2.0  # seconds that silent ranks wait for the rank that prints: a launcher stops all output when a rank is lost


@contextmanager
def time_limit(seconds: float, message: str) -> Iterator[None]:
    """Print `message` and end this process, with a code other than 0, when the block takes longer than `seconds`.

    A small watcher process measures the time. It ends when this process closes the pipe between them, or dies.
    """
    arguments = [str(seconds if message else seconds + LATER), str(os.getpid()), message]
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", WATCHER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        assert watcher.stdin is not None
        watcher.stdin.close()
        watcher.wait()
