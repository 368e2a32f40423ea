import numpy as np

from flora_hpc.records.known import RoundRecord
from flora_hpc.records.sampled import recorded, sample
from flora_hpc.records.schema import CLIENTS, RANKS, ROUNDS


def made(num_clients: int, number: int = 4) -> RoundRecord:
    clients = np.zeros(num_clients, CLIENTS)
    clients["client"] = np.arange(num_clients) * 3
    row = np.zeros(1, ROUNDS)
    row["round"], row["num_clients"] = number, num_clients
    return RoundRecord(row, np.zeros(2, RANKS), clients)


def test_a_sample_has_as_many_rows_in_their_order_and_sums_of_all() -> None:
    record = recorded(made(100), 0, 10)
    assert len(record.clients) == 10
    assert (np.diff(record.clients["client"]) > 0).all()
    assert record.row["num_clients"] == 100


def test_all_none_and_more_than_there_are() -> None:
    record = made(5)
    assert recorded(record, 0, None) is record
    assert len(recorded(record, 0, 0).clients) == 0
    assert recorded(record, 0, 6).clients["client"].tolist() == [0, 3, 6, 9, 12]


def test_the_sample_depends_on_seed_round_and_clients_alone() -> None:
    rows = made(200).clients
    first = set(sample(rows, 0, 1, 20)["client"].tolist())
    assert set(sample(rows[::-1], 0, 1, 20)["client"].tolist()) == first
    assert set(sample(rows, 0, 2, 20)["client"].tolist()) != first
    assert set(sample(rows, 1, 1, 20)["client"].tolist()) != first


def test_every_client_is_drawn_equally_often() -> None:
    """A fifth of 50 clients in 500 rounds: 100 times each, within five times sqrt(500 x 1/5 x 4/5) = 8.9."""
    rows = made(50).clients
    counts = np.bincount(np.concatenate([sample(rows, 0, number, 10)["client"] for number in range(500)]) // 3, minlength=50)
    np.testing.assert_allclose(counts, 100, atol=44)
