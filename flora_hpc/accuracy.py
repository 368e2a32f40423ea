"""Tests of the adapter: at once after its round, or by idle ranks during the next round (`evaluate.overlap`).

    round        1                2                3
    at once      train  test 1    train  test 2    train  test 3
    overlapped   train            train  test 1    train  test 2  test 3        a rank tests when its clients are trained

The record of a round without its test is incomplete: rank 0 keeps it until the next round's counts of right answers arrive.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from flora_hpc import evaluate
from flora_hpc.data.images import Ints
from flora_hpc.evaluate import Mixes
from flora_hpc.records.known import NOT_TESTED, Floats, RankReport, RightAnswers, RoundRecord
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
        return self._count(adapter, number, lambda purpose, num_blocks: range(comm.rank, num_blocks, comm.size))

    def later(self, adapter: torch.Tensor, number: int) -> RightAnswers:
        """Count them during the next round, with the adapter after round `number`, before the adapter changes.

        A rank that has trained its clients early tests more blocks of images.
        """
        if not self.is_postponed(number):
            return NOT_TESTED
        draw = self.site.counters.draw
        return self._count(adapter, number, lambda purpose, num_blocks: draw(purpose, number + 1, num_blocks))

    def complete_records(self, record: RoundRecord, reports: Sequence[RankReport]) -> list[RoundRecord]:
        """On rank 0: put the accuracies from all ranks' `reports` into records. Returns the records that are complete now."""
        self._note(record, [report.correct for report in reports])
        complete = [record]
        if self.untested is not None:
            self._note(self.untested, [report.previous_correct for report in reports])
            complete = [self.untested, record]
        self.untested = complete.pop() if self.is_postponed(int(record.row["round"][0])) else None
        return complete

    def _count(self, adapter: torch.Tensor, number: int, local_blocks: Callable[[str, int], Iterable[int]]) -> RightAnswers:
        """Count this rank's right answers; `local_blocks` selects its blocks of images, for a purpose, from their number."""
        setup = self.setup

        def count(purpose: str, tested: torch.Tensor, *others: torch.Tensor) -> RightAnswers:
            own_blocks = partial(local_blocks, purpose)
            return evaluate.count_correct(setup.method, tested, setup.inputs, setup.labels, setup.test, own_blocks, *others)

        with self.site.comm.phase("eval"):
            whole, by_rank = count("test", adapter, setup.validation, setup.backdoor), []
            for rank, mask in classes_of_rank(setup, number):
                is_whole = bool(mask.all())
                cut = whole if is_whole else count(f"test rank {rank}", adapter * mask.to(adapter.device))
                by_rank.append(cut.test.sum())
            return whole._replace(by_rank=np.array(by_rank, np.int64))

    def _note(self, record: RoundRecord, answers: Sequence[RightAnswers]) -> None:
        """Put the accuracies from the ranks' right answers into a record, if its adapter was tested."""
        correct = sum_of([of_rank.test for of_rank in answers])
        if not len(correct):
            return
        record.row["test_accuracy"] = correct.sum() / len(self.setup.test)
        if len(self.setup.validation):
            record.row["validation_accuracy"] = sum(of_rank.validation for of_rank in answers) / len(self.setup.validation)
        if len(self.setup.backdoor):
            record.row["backdoor_success"] = sum(of_rank.triggered for of_rank in answers) / len(self.setup.backdoor)
        if self.mixes is not None:
            self.mixes.note(record.row, correct)
        by_rank = sum_of([of_rank.by_rank for of_rank in answers])
        if len(by_rank):
            note_ranks(record, ranks_of(self.setup, int(record.row["round"][0])), by_rank / len(self.setup.test))


def classes_of_rank(setup: Setup, number: int) -> list[tuple[int, torch.Tensor]]:
    """The ranks of the adapters of the clients of a round, ascending, and what such a client holds, (num_params,) bool.

    None without `evaluate.per_rank`.
    """
    portions = setup.method.portions
    if not setup.evaluate.per_rank or number == 0 or portions is None or portions.ranks is None:
        return []
    clients = setup.schedule.clients(number)
    ranks, firsts = np.unique(portions.ranks(clients), return_index=True)
    return list(zip(ranks.tolist(), portions.mask(clients[firsts]), strict=True))


def ranks_of(setup: Setup, number: int) -> Ints:
    """The rank of the adapter of each client (num_clients,) of a round."""
    portions = setup.method.portions
    assert portions is not None
    assert portions.ranks is not None
    return portions.ranks(setup.schedule.clients(number))


def note_ranks(record: RoundRecord, all_ranks: Ints, accuracies: Floats) -> None:
    """Put the accuracies (num_ranks,) of the adapter cut to each rank of the round's clients, ascending, into a record.

    `all_ranks` (num_clients,) are those of all clients, though only some of them may have a row.
    """
    ranks, counts = np.unique(all_ranks, return_counts=True)
    record.clients["rank_accuracy"] = accuracies[np.searchsorted(ranks, record.clients["adapter_rank"])]
    record.row["rank_accuracy_mean"] = np.average(accuracies, weights=counts)
    record.row["rank_accuracy_min"], record.row["worst_rank"] = accuracies.min(), ranks[accuracies.argmin()]


def sum_of(counts: Sequence[Ints]) -> Ints:
    """Sum counts of classes; a shorter list has no answers of its missing classes."""
    total = np.zeros(max(map(len, counts)), np.int64)
    for part in counts:
        total[: len(part)] += part
    return total
