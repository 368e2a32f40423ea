"""Tests of the adapter: at once after its round, or by idle ranks during the next round (`evaluate.overlap`).

    round        1                2                3
    at once      train  test 1    train  test 2    train  test 3
    overlapped   train            train  test 1    train  test 2  test 3        a rank tests when its clients are trained

The record of a round without its test is incomplete: rank 0 keeps it until the next round's counts of right answers arrive.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flora_hpc import evaluate
from flora_hpc.data.images import Ints
from flora_hpc.evaluate import Mixes
from flora_hpc.records.known import NOT_TESTED, RankReport, RightAnswers, RoundRecord
from flora_hpc.setup import Setup, Site


@dataclass
class AdapterTests:
    """Tests the adapters when they are due, and keeps the record that waits for its accuracy."""

    setup: Setup
    site: Site
    mixes: Mixes | None = None  # on rank 0: the clients that are tested on their own
    untested: RoundRecord | None = None  # on rank 0: the previous round, if its adapter is tested during this round

    def is_postponed(self, number: int) -> bool:
        """Whether the adapter after round `number` is tested during the next round."""
        return self.setup.evaluate.overlap and self.setup.is_tested(number) and number < self.setup.rounds

    def now(self, adapter: torch.Tensor, number: int) -> RightAnswers:
        """Count this rank's right answers with the adapter after round `number`, unless it is not tested now."""
        comm = self.site.comm
        if not self.setup.is_tested(number) or self.is_postponed(number):
            return NOT_TESTED
        return self._count(adapter, lambda num_blocks: range(comm.rank, num_blocks, comm.size))

    def later(self, adapter: torch.Tensor, number: int) -> RightAnswers:
        """Count them during the next round, with the adapter after round `number`, before the adapter changes.

        A rank that has trained its clients early tests more blocks of images.
        """
        if not self.is_postponed(number):
            return NOT_TESTED
        return self._count(adapter, lambda num_blocks: self.site.counters.draw("test", number + 1, num_blocks))

    def complete_records(self, record: RoundRecord, reports: Sequence[RankReport]) -> list[RoundRecord]:
        """On rank 0: put the accuracies from all ranks' `reports` into records. Returns the records that are complete now."""
        self._note(record, [report.correct for report in reports])
        complete = [record]
        if self.untested is not None:
            self._note(self.untested, [report.previous_correct for report in reports])
            complete = [self.untested, record]
        self.untested = complete.pop() if self.is_postponed(int(record.row["round"][0])) else None
        return complete

    def _count(self, adapter: torch.Tensor, local_blocks: Callable[[int], Iterable[int]]) -> RightAnswers:
        setup = self.setup
        with self.site.comm.phase("eval"):
            return evaluate.count_correct(
                setup.method, adapter, setup.inputs, setup.labels, setup.test, local_blocks, setup.validation
            )

    def _note(self, record: RoundRecord, answers: Sequence[RightAnswers]) -> None:
        """Put the accuracies from the ranks' right answers into a record, if its adapter was tested."""
        correct = sum_of([of_rank.test for of_rank in answers])
        if not len(correct):
            return
        record.row["test_accuracy"] = correct.sum() / len(self.setup.test)
        if len(self.setup.validation):
            record.row["validation_accuracy"] = sum(of_rank.validation for of_rank in answers) / len(self.setup.validation)
        if self.mixes is not None:
            self.mixes.note(record.row, correct)


def sum_of(counts: Sequence[Ints]) -> Ints:
    """Sum counts of classes; a shorter list has no answers of its missing classes."""
    total = np.zeros(max(map(len, counts)), np.int64)
    for part in counts:
        total[: len(part)] += part
    return total
