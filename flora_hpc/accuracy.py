"""Tests of the adapter: at once after its round, or by idle ranks during the next round (`evaluate.overlap`).

    round        1                2                3
    at once      train  test 1    train  test 2    train  test 3
    overlapped   train            train  test 1    train  test 2  test 3        a rank tests when its clients are trained

A round that is not tested yet has no complete record: rank 0 keeps it until the next round's counts of right answers are there.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flora_hpc import evaluate
from flora_hpc.data.images import Ints
from flora_hpc.evaluate import Mixes
from flora_hpc.records.known import RankReport, RoundRecord
from flora_hpc.setup import Setup, Site

NOTHING = np.zeros(0, np.int64)  # was tested


@dataclass
class AdapterTests:
    """When adapters are tested, and the record that waits for its accuracy."""

    setup: Setup
    site: Site
    mixes: Mixes | None = None  # of clients that are tested on their own, on rank 0
    untested: RoundRecord | None = None  # on rank 0: the round before, if its adapter is tested during this one

    def is_late(self, number: int) -> bool:
        """Whether the adapter after round `number` is tested during the next round."""
        return self.setup.evaluate.overlap and self.setup.is_tested(number) and number < self.setup.rounds

    def now(self, adapter: torch.Tensor, number: int) -> Ints:
        """This rank's right answers of each class with the adapter after round `number`; empty where it is not tested now."""
        comm = self.site.comm
        if not self.setup.is_tested(number) or self.is_late(number):
            return NOTHING
        return self._count(adapter, lambda num_blocks: range(comm.rank, num_blocks, comm.size))

    def later(self, adapter: torch.Tensor, number: int) -> Ints:
        """The same with the adapter after round `number`, which is still held, during the next round. Idle ranks test more."""
        if not self.is_late(number):
            return NOTHING
        return self._count(adapter, lambda num_blocks: self.site.counters.draw("test", number + 1, num_blocks))

    def settle(self, record: RoundRecord, reports: Sequence[RankReport]) -> list[RoundRecord]:
        """Put the accuracies of all ranks' `reports` into records. Returns, on rank 0, the records that are complete now."""
        self._note(record, [report.correct for report in reports])
        complete = [record]
        if self.untested is not None:
            self._note(self.untested, [report.before for report in reports])
            complete = [self.untested, record]
        self.untested = complete.pop() if self.is_late(int(record.row["round"][0])) else None
        return complete

    def _count(self, adapter: torch.Tensor, my_blocks: Callable[[int], Iterable[int]]) -> Ints:
        setup = self.setup
        with self.site.comm.phase("eval"):
            return evaluate.count_correct(setup.method, adapter, setup.inputs, setup.labels, setup.test, my_blocks)

    def _note(self, record: RoundRecord, counts: Sequence[Ints]) -> None:
        """Put what the ranks' `counts` of right answers say into a record; they are empty where nothing was tested."""
        correct = sum_of(counts)
        if len(correct):
            record.row["test_accuracy"] = correct.sum() / len(self.setup.test)
            if self.mixes is not None:
                self.mixes.note(record.row, correct)


def sum_of(counts: Sequence[Ints]) -> Ints:
    """The sum of counts of classes, of which some lists end before the others."""
    total = np.zeros(max(map(len, counts)), np.int64)
    for part in counts:
        total[: len(part)] += part
    return total
