"""`failing_task.py HOW RANK MOMENT ARGUMENTS...` is flora-hpc in which one rank fails in round 2; the file MOMENT says when.

HOW: `killed` while it trains, `killed-in-sum` while it waits in the sum of updates for the last of the others, `error`, `stopped`.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from flora_hpc import round as rounds
from flora_hpc.cli import main

how, rank, moment = sys.argv.pop(1), int(sys.argv.pop(1)), Path(sys.argv.pop(1))
train = rounds.train_my_groups


def fail(number=signal.SIGKILL):  # type: ignore[no-untyped-def]
    moment.write_text(str(time.time()))
    os.kill(os.getpid(), number)


def kill_inside(comm):  # type: ignore[no-untyped-def]
    while comm.inside_since is None or time.perf_counter() - comm.inside_since < 0.3:
        time.sleep(0.01)
    fail()


def train_and_fail(setup, site, state, number):  # type: ignore[no-untyped-def]
    me = number == 2 and site.comm.rank == rank
    if me and how in ("killed", "stopped"):
        fail(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    if me and how == "error":
        moment.write_text(str(time.time()))
        raise ZeroDivisionError("a bug of this rank")
    trained = train(setup, site, state, number)
    if me and how == "killed-in-sum":
        threading.Thread(target=kill_inside, args=[site.comm], daemon=True).start()
    elif number == 2 and how == "killed-in-sum" and site.comm.rank == (rank - 1) % site.comm.size:
        time.sleep(2)  # the others are in the sum of updates by then
    return trained


rounds.train_my_groups = train_and_fail
main()
