"""`failing_rank.py RANK ARGUMENTS...` is flora-hpc in which one rank fails while it trains in round 3."""

import sys

from flora_hpc import round as rounds
from flora_hpc.cli import main

failing = int(sys.argv.pop(1))
train = rounds.train_my_groups


def fail(setup, site, state, number):  # type: ignore[no-untyped-def]
    if number == 3 and site.comm.rank == failing:
        raise ZeroDivisionError("a bug of this rank")
    return train(setup, site, state, number)


rounds.train_my_groups = fail
main()
