from dataclasses import replace

import numpy as np
import torch

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
