"""How evenly the ranks share the work; every round waits for the slowest rank."""

from dataclasses import dataclass

import numpy as np

from flora_hpc.records.schema import Rows
from flora_hpc.records.views import count, seconds

WORK = ("batch_seconds", "train_seconds", "sum_seconds")  # of a rank, for its own clients


@dataclass(frozen=True)
class Balance:
    """How evenly ranks shared the training rounds that several ranks played, however many ranks played each."""

    share: float  # 0..1: the mean of the ranks' work over the work of the slowest, both summed over rounds
    rank: int  # the slowest: the rank that the other ranks waited for longest
    num_last: int  # rounds in which this rank was the last
    late_seconds: float  # in these rounds, beyond the mean of the ranks
    num_rounds: int

    def __str__(self) -> str:
        if not self.num_last:
            return "none, all ranks have as much work"
        which = f"last in {self.num_last:,} of {count(self.num_rounds, 'round')}"
        return f"{which}, {seconds(self.late_seconds)} after the mean rank in all"


def balance(ranks: Rows) -> Balance | None:
    """Balance of the rows of /ranks; None when no round had several ranks. Files of old versions count all work as training."""
    rows = ranks[ranks["round"] > 0]
    work = np.zeros(len(rows))
    for name in WORK:
        work += rows[name] if name in (rows.dtype.names or ()) else 0.0
    order = np.lexsort((-rows["rank"], work, rows["round"]))
    rows, work = rows[order], work[order]
    _, starts, sizes = np.unique(rows["round"], return_index=True, return_counts=True)
    has_several = sizes > 1
    if not has_several.any():
        return None
    last = (starts + sizes - 1)[has_several]  # the row of the slowest rank of a round
    slowest_work, mean_work = work[last], (np.add.reduceat(work, starts) / sizes)[has_several]
    late = np.where(work[starts[has_several]] < slowest_work, slowest_work - mean_work, 0.0)
    by_rank = np.bincount(rows["rank"][last], late)
    slowest = int(by_rank.argmax())
    total = float(slowest_work.sum())
    return Balance(
        share=float(mean_work.sum()) / total if total else 1.0,
        rank=slowest,
        num_last=int(((rows["rank"][last] == slowest) & (late > 0)).sum()),
        late_seconds=float(by_rank[slowest]),
        num_rounds=len(last),
    )
