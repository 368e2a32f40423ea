from flora_hpc.records.balance import Balance, balance
from flora_hpc.records.schema import RANKS, Rows
from tests.contracts.known_helpers import rows


def table(*rounds: list[float]) -> Rows:
    """The seconds that each rank trains in round 1, 2, ..."""
    return rows(
        RANKS,
        *(
            {"round": number, "rank": rank, "train_seconds": value}
            for number, values in enumerate(rounds, 1)
            for rank, value in enumerate(values)
        ),
    )


def test_one_rank_has_nothing_to_balance() -> None:
    assert balance(table([1], [2])) is None
    assert balance(table()) is None


def test_the_slowest_rank_is_the_one_that_others_wait_for_longest() -> None:
    """Rank 1 is last twice, by 0.5 s beyond the mean; rank 0 once, by 1.5 s."""
    assert balance(table([1, 2], [1, 2], [4, 1])) == Balance(5.5 / 8, rank=0, num_last=1, late_seconds=1.5, num_rounds=3)


def test_ranks_that_take_turns_being_slow_are_not_balanced() -> None:
    found = balance(table([9, 1], [1, 9]))
    assert found is not None
    assert found.share == 10 / 18


def test_a_run_that_went_on_with_fewer_ranks_is_as_balanced_as_its_rounds() -> None:
    """Both ranks trained 1 s, then one of them trained what both had."""
    found = balance(table([1, 1], [2]))
    assert found is not None
    assert (found.share, found.num_last, found.num_rounds) == (1, 0, 1)
    assert str(found) == "none, all ranks have as much work"


def test_all_work_for_clients_counts_and_round_0_does_not() -> None:
    ranks = table([1, 1])
    ranks["batch_seconds"], ranks["sum_seconds"] = [1, 0], [1, 0]
    before = rows(RANKS, {"round": 0, "rank": 0, "train_seconds": 9}, {"round": 0, "rank": 1})
    for tables in (ranks, rows(RANKS, *({name: row[name] for name in RANKS.names or ()} for row in [*before, *ranks]))):
        found = balance(tables)
        assert found is not None
        assert (found.share, found.rank) == (2 / 3, 0)
        assert str(found) == "last in 1 of 1 round, 1.00 s after the mean rank in all"


def test_no_seconds_at_all() -> None:
    assert balance(table([0, 0])) == Balance(1.0, rank=0, num_last=0, late_seconds=0.0, num_rounds=1)
