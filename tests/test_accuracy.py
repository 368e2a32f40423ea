from dataclasses import replace

import numpy as np
import torch

from flora_hpc.accuracy import AdapterTests
from flora_hpc.config import EvaluateConfig
from flora_hpc.data.images import Ints
from flora_hpc.data.inputs import Features
from flora_hpc.methods._method import Portions
from flora_hpc.records.known import RankReport, RightAnswers
from tests.test_round import four_clients, play


def test_accuracy_is_right_answers_of_all_ranks_over_all_test_images() -> None:
    """Two of class 0 and one of class 1, out of four."""
    setup, state = four_clients()
    record = play(setup, state)
    reports = [RankReport(record.ranks, record.clients, RightAnswers(np.array(counts)), 0, np.zeros(0)) for counts in ([1], [1, 1])]
    assert state.tests.complete_records(record, reports) == [record]
    assert record.row["test_accuracy"][0] == 0.75


def test_validation_accuracy_stands_beside_it() -> None:
    """Three of eight validation images are right, on two ranks together."""
    setup, state = four_clients()
    record = play(setup, state)
    assert np.isnan(record.row["validation_accuracy"][0])
    state.tests.setup = replace(setup, validation=torch.arange(4, 12))
    answers = [RightAnswers(np.array([1]), 2), RightAnswers(np.array([1, 1]), 1)]
    reports = [RankReport(record.ranks, record.clients, of_rank, 0, np.zeros(0)) for of_rank in answers]
    state.tests.complete_records(record, reports)
    assert (record.row["test_accuracy"][0], record.row["validation_accuracy"][0]) == (0.75, 0.375)


def test_accuracy_of_each_rank_by_hand() -> None:
    """A client of rank 1 holds the weights of the first feature, one of rank 3 all: rows (-1, 0, 3) and (1, 0, 0) of the classes.

    Feature rows (1, 0, 0), (0, 0, 1), (-1, 0, 1), (1, 0, 1) have labels 1, 0, 0, 0. The adapter scores class 0 with -1, 3, 4, 2 and
    class 1 with 1, 0, -1, 1: all right. Cut to rank 1, it scores -1, 0, 1, -1 and 1, 0, -1, 1: the last one is wrong.
    """
    setup, state = four_clients()
    ranks = np.array([3, 1, 3, 1])

    def mask(clients: Ints) -> torch.Tensor:
        return (torch.arange(3) < torch.from_numpy(ranks[clients])[:, None]).repeat(1, 2)

    setup = replace(
        setup,
        method=replace(setup.method, portions=Portions(mask, lambda clients: 2 * ranks[clients], lambda clients: ranks[clients])),
        evaluate=EvaluateConfig(per_rank=True),
        labels=torch.tensor([1, 0, 0, 0] * 3),
        inputs=Features(torch.tensor([[1.0, 0, 0], [0, 0, 1], [-1, 0, 1], [1, 0, 1]] * 3)),
    )
    tests = AdapterTests(setup, state.tests.site)
    correct = tests.now(torch.tensor([-1.0, 0, 3, 1, 0, 0]), 1)
    assert (correct.test.tolist(), correct.by_rank.tolist()) == ([3, 1], [3, 4])
    assert tests.now(torch.zeros(6), 0).by_rank.tolist() == []  # nobody trains in round 0
    record = play(setup, replace(state, tests=tests))
    assert record.clients["adapter_rank"].tolist() == [3, 1, 3, 1]
    reports = [RankReport(record.ranks, record.clients, correct, 0, np.zeros(0))]
    tests.complete_records(record, [RankReport.from_bytes(of_rank.to_bytes()) for of_rank in reports])
    assert record.clients["rank_accuracy"].tolist() == [1, 0.75, 1, 0.75]
    assert [record.row[name][0] for name in ("rank_accuracy_mean", "rank_accuracy_min", "worst_rank")] == [0.875, 0.75, 1]
