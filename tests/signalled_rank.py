"""`signalled_rank.py SIGNAL RANK ROUND ARGUMENTS...` is flora-hpc in which one rank gets a signal while it trains."""

import os
import signal
import sys

from flora_hpc import round as rounds
from flora_hpc.cli import main

number, rank, at = signal.Signals[sys.argv.pop(1)], int(sys.argv.pop(1)), int(sys.argv.pop(1))
train = rounds.train_my_groups


def train_and_get_a_signal(setup, site, state, round_number):  # type: ignore[no-untyped-def]
    if (site.comm.rank, round_number) == (rank, at):
        os.kill(os.getpid(), number)
    return train(setup, site, state, round_number)


rounds.train_my_groups = train_and_get_a_signal
main()
