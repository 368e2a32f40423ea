import subprocess
import sys
import time

from flora_hpc.cli._limit import time_limit

SLOW = """
import sys, time
from flora_hpc.cli._limit import time_limit
with time_limit(1.0, sys.argv[1]):
    print("inside", flush=True)
    time.sleep(60)
"""


def test_what_is_quick_enough_is_left_alone() -> None:
    started = time.monotonic()
    with time_limit(30, "too late"):
        pass
    assert time.monotonic() - started < 10


def test_what_is_too_slow_is_ended_with_the_message() -> None:
    done = subprocess.run([sys.executable, "-c", SLOW, "too late"], capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert (done.stdout, done.stderr) == ("inside\n", "too late\n")


def test_a_silent_rank_ends_a_little_later_and_says_nothing() -> None:
    """So that the launcher still hears the rank that speaks."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", SLOW, ""], capture_output=True, text=True, timeout=30)
    assert time.monotonic() - started > 3
    assert done.returncode != 0
    assert done.stderr == ""
