"""What rank 0 takes to decode and merge the reports of many ranks, measured here: runs with few ranks do not show it."""

import time

import numpy as np

from flora_hpc.records.known import NOT_TESTED, RankReport, merge
from flora_hpc.records.schema import CLIENTS, RANKS

RANKS_MERGED = 512
REPEATS = 3


def seconds_of_a_rank() -> float:
    """Seconds of one rank's report without clients: the best of REPEATS."""
    reports = [RankReport(np.zeros(1, RANKS), np.zeros(0, CLIENTS), NOT_TESTED, 0, np.ones(3)).to_bytes()] * RANKS_MERGED
    repeats = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        merge(1, [RankReport.from_bytes(data) for data in reports])
        repeats.append(time.perf_counter() - started)
    return min(repeats) / RANKS_MERGED
