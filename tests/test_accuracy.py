import numpy as np

from flora_hpc.records.known import RankReport
from tests.test_round import federation, play


def test_accuracy_is_right_answers_of_all_ranks_over_all_test_images() -> None:
    """Two of class 0 and one of class 1, out of four."""
    setup, state = federation()
    record = play(setup, state)
    reports = [RankReport(record.ranks, record.clients, np.array(counts), 0, np.zeros(0)) for counts in ([1], [1, 1])]
    assert state.tests.complete_records(record, reports) == [record]
    assert record.row["test_accuracy"][0] == 0.75
