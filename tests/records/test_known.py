from dataclasses import replace

import numpy as np
import pytest

from flora_hpc.records.known import RankReport, RightAnswers, merge, wait_and_transfer
from flora_hpc.records.schema import CLIENTS, RANKS, Rows
from tests.contracts.known_helpers import rows

# Two ranks: clients 4 and 9 on the first, client 7 on the second. The update of client 9 was not finite.
FIRST = RankReport(
    rank=rows(
        RANKS,
        {"round": 3, "rank": 0, "num_clients": 2, "batch_seconds": 0.5, "train_seconds": 3.0, "sum_seconds": 0.25}
        | {"server_seconds": 0.25, "eval_seconds": 1.0, "log_seconds": 0.25, "round_seconds": 6.0, "collective_bytes": 300},
    ),
    clients=rows(
        CLIENTS,
        {"round": 3, "client": 9, "num_examples": 20, "weight": 0, "train_loss": np.inf, "uplink_bytes": 8, "downlink_bytes": 80},
        {"round": 3, "client": 4, "num_examples": 10, "weight": 10, "train_loss": 2.0, "uplink_bytes": 8, "downlink_bytes": 80},
    ),
    correct=RightAnswers(np.array([10, 0, 20]), 6),
    digest=-5,
    collectives=np.array([0.25, 0.75]),  # last to come to the first one
)
SECOND = RankReport(
    rank=rows(
        RANKS,
        {
            "round": 3,
            "rank": 1,
            "num_clients": 1,
            "train_seconds": 1.0,
            "sum_seconds": 0.25,
        }
        | {"server_seconds": 0.75, "eval_seconds": 0.5, "log_seconds": 0.0, "round_seconds": 6.0, "collective_bytes": 100},
    ),
    clients=rows(
        CLIENTS,
        {"round": 3, "client": 7, "rank": 1, "num_examples": 30, "weight": 30, "train_loss": 1.0}
        | {"uplink_bytes": 8, "downlink_bytes": 80},
    ),
    correct=RightAnswers(np.array([5, 40])),
    digest=-5,
    collectives=np.array([3.25, 0.25]),  # last to come to the second one
    previous_correct=RightAnswers(np.array([7, 8, 9]), 11),
)
IDLE = RankReport(
    rows(RANKS, {"round": 3, "rank": 2}), np.zeros(0, CLIENTS), RightAnswers(np.array([0])), -5, np.array([1.25, 0.75])
)


@pytest.mark.parametrize("report", [FIRST, SECOND, IDLE], ids=["two clients", "one client", "no client"])
def test_a_report_survives_the_way_to_rank_0(report: RankReport) -> None:
    again = RankReport.from_bytes(report.to_bytes())
    np.testing.assert_array_equal(again.rank, report.rank)
    np.testing.assert_array_equal(again.clients, report.clients)
    for answers, expected in ((again.correct, report.correct), (again.previous_correct, report.previous_correct)):
        np.testing.assert_array_equal(answers.test, expected.test)
        assert answers.validation == expected.validation
    np.testing.assert_array_equal(again.collectives, report.collectives)
    assert again.digest == report.digest


def test_the_row_of_a_round_adds_up_its_clients() -> None:
    row = merge(3, [FIRST, SECOND, IDLE]).row[0]
    found = {name: int(row[name]) for name in ("round", "num_clients", "num_rejected", "num_examples")}
    assert found == {"round": 3, "num_clients": 3, "num_rejected": 1, "num_examples": 60}
    assert (row["uplink_bytes"], row["downlink_bytes"], row["collective_bytes"]) == (24, 240, 400)


def test_the_loss_is_weighted_and_leaves_out_rejected_clients() -> None:
    """(10 x 2 + 30 x 1) / 40; the third one's is infinite."""
    assert merge(3, [FIRST, SECOND]).row["train_loss"].item() == 1.25


def test_without_a_kept_client_there_is_no_loss() -> None:
    rejected = replace(FIRST, clients=FIRST.clients[:1])
    assert np.isnan(merge(3, [rejected]).row["train_loss"]).all()
    assert np.isnan(merge(0, [IDLE]).row["train_loss"]).all()


def test_seconds_are_means_over_ranks() -> None:
    row = merge(3, [FIRST, SECOND]).row[0]
    seconds = {name: row[name].item() for name in row.dtype.names if name.endswith("_seconds")}
    assert seconds == {
        "batch_seconds": 0.25,
        "train_seconds": 2.0,
        "sum_seconds": 0.25,
        "wait_seconds": 1.75,
        "comm_seconds": 0.5,
        "server_seconds": 0.5,
        "eval_seconds": 0.75,
        "log_seconds": 0.125,
        "round_seconds": 6.0,
    }


def test_a_rank_waits_as_long_as_it_is_in_collectives_beyond_the_last_one_to_come() -> None:
    """The first collective takes 0.25 s with the first rank the last to come, the second one 0.25 s with the second rank."""
    ranks = merge(3, [FIRST, SECOND, IDLE]).ranks
    assert ranks["comm_seconds"].tolist() == [0.5, 0.5, 0.5]
    assert ranks["wait_seconds"].tolist() == [0.5, 3.0, 1.5]


def test_nothing_is_known_yet_of_the_accuracy() -> None:
    row = merge(3, [FIRST, SECOND]).row
    assert np.isnan(
        [row["test_accuracy"], row["validation_accuracy"], row["client_accuracy_mean"], row["client_accuracy_min"]]
    ).all()
    assert row["worst_client"] == -1


def test_clients_come_in_order_and_ranks_as_they_are() -> None:
    record = merge(3, [FIRST, SECOND, IDLE])
    assert record.clients["client"].tolist() == [4, 7, 9]
    assert record.clients["num_examples"].tolist() == [10, 30, 20]
    assert record.ranks["rank"].tolist() == [0, 1, 2]


def clients_of_a_round() -> Rows:
    """Forty clients, of which three were rejected and five have no personal accuracy."""
    rng, table = np.random.default_rng(0), np.zeros(40, CLIENTS)
    table["client"], table["num_examples"] = rng.permutation(40), rng.integers(1, 100, 40)
    table["weight"], table["attacks"] = np.where(np.arange(40) < 3, 0, table["num_examples"]), rng.integers(0, 2, 40)
    table["train_loss"], table["uplink_bytes"] = rng.lognormal(size=40), 8
    table["global_accuracy"], table["personal_accuracy"] = rng.random((2, 40))
    table["personal_accuracy"][:5] = np.nan
    return table


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("chosen", [[], [7, 30, 31, 2]], ids=["no client", "four clients"])
def test_the_row_of_a_round_is_the_same_whichever_clients_are_sent_and_on_any_number_of_ranks(
    num_ranks: int, chosen: list[int]
) -> None:
    clients = clients_of_a_round()
    parts = np.array_split(clients, num_ranks)
    reports = [replace(IDLE, clients=part) for part in parts]
    some = [RankReport.from_bytes(report.only(np.array(chosen, np.int64)).to_bytes()) for report in reports]
    record = merge(3, some)
    assert record.row.tobytes() == merge(3, [replace(IDLE, clients=clients)]).row.tobytes()
    assert record.clients["client"].tolist() == sorted(chosen)
    assert sum(map(len, (report.personal for report in some))) == 35


def test_ranks_whose_adapters_differ_are_an_error() -> None:
    drifted = replace(SECOND, digest=6)
    with pytest.raises(RuntimeError, match="round 3: the ranks' adapters drifted apart"):
        merge(3, [FIRST, drifted])


def test_waiting_is_what_a_rank_spends_beyond_the_last_one_to_come() -> None:
    """Two collectives: rank 2 is the last to come to the first one, rank 0 to the second."""
    waited, transfer = wait_and_transfer([[5.0, 1.0], [3.0, 4.0], [2.0, 2.0]])
    assert transfer == 2.0 + 1.0
    assert waited.tolist() == [3.0, 4.0, 1.0]


def test_without_collectives_nobody_waits() -> None:
    waited, transfer = wait_and_transfer([[], []])
    assert (waited.tolist(), transfer) == ([0.0, 0.0], 0.0)


def test_alone_everything_is_transfer() -> None:
    waited, transfer = wait_and_transfer([[0.5, 0.25]])
    assert (waited.tolist(), transfer) == ([0.0], 0.75)


def test_ranks_in_different_numbers_of_collectives_are_a_mistake_of_the_program() -> None:
    with pytest.raises(ValueError, match="inhomogeneous"):
        wait_and_transfer([[1.0, 2.0], [1.0]])
