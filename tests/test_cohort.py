import numpy as np
import pytest

from flora_hpc import cohort
from flora_hpc.config import CohortConfig


def sample(registered: int = 40, seed: int = 0, number: int = 1, **config: float) -> list[int]:
    return cohort.sample(CohortConfig(**config), registered, seed, number).tolist()


# --- who trains


def test_everybody_unless_told_otherwise() -> None:
    assert sample(5) == [0, 1, 2, 3, 4]
    assert sample(5, fraction=1.0) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("config", "wanted"), [({"fraction": 0.25}, 10), ({"size": 7}, 7), ({"size": 40}, 40)])
def test_a_share_or_a_number_of_clients_ascending_and_none_twice(config: dict[str, float], wanted: int) -> None:
    drawn = sample(**config)
    assert len(drawn) == wanted
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(range(40))


def test_the_smallest_share_is_one_client() -> None:
    assert len(sample(fraction=0.001)) == 1


def test_seed_and_round_decide() -> None:
    drawn = sample(seed=1, number=2, size=10)
    assert drawn == sample(seed=1, number=2, size=10)
    assert drawn != sample(seed=1, number=3, size=10)
    assert drawn != sample(seed=2, number=2, size=10)


def test_every_client_has_the_same_chance() -> None:
    """In 400 rounds of a quarter of 40 clients each takes part 100 times, give or take five times sqrt(400 x 1/4 x 3/4) = 8.7."""
    counts = np.bincount(np.concatenate([sample(number=number, size=10) for number in range(400)]), minlength=40)
    np.testing.assert_allclose(counts, 100, atol=43)


def test_a_small_cohort_of_a_million_clients() -> None:
    drawn = sample(1_000_000, size=100)
    assert len(set(drawn)) == 100
    assert max(drawn) < 1_000_000


# --- in which groups


def test_clients_of_like_size_are_grouped_largest_first() -> None:
    groups = cohort.make_groups(np.array([3, 5, 7, 9, 11]), np.array([10, 40, 20, 40, 30]), 2)
    assert [group.tolist() for group in groups] == [[5, 9], [11, 7], [3]]


@pytest.mark.parametrize("group_size", [1, 4, 33, 100])
def test_every_client_is_in_one_group(group_size: int) -> None:
    clients, sizes = np.arange(100, 133), np.random.default_rng(0).integers(1, 9, 33)
    groups = cohort.make_groups(clients, sizes, group_size)
    assert sorted(np.concatenate(groups).tolist()) == clients.tolist()
    assert max(map(len, groups)) <= group_size


# --- on which rank


def test_the_costliest_group_goes_first_to_the_rank_with_the_least() -> None:
    """5 | -, 5 | 4, 5 | 4+3, 5+2 | 4+3, and the last to the first of equals."""
    assert cohort.assign([3, 5, 2, 4, 1], 2) == [[1, 2, 4], [3, 0]]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("num_groups", [1, 2, 13, 50])
def test_every_group_is_on_one_rank_and_no_rank_has_a_group_too_many(num_groups: int, num_ranks: int) -> None:
    costs = np.random.default_rng(num_groups).integers(1, 100, num_groups).tolist()
    ranks = cohort.assign(costs, num_ranks)
    assert len(ranks) == num_ranks
    assert sorted(group for mine in ranks for group in mine) == list(range(num_groups))
    loads = [sum(costs[group] for group in mine) for mine in ranks]
    assert max(loads) - min(loads) <= max(costs)


def test_static_groups_go_to_ranks_in_turn_whatever_they_cost() -> None:
    assert cohort.assign([3, 5, 2, 4, 1], 2, "static") == [[0, 2, 4], [1, 3]]
    assert cohort.assign([3], 2, "static") == [[0], []]


def test_a_rank_may_get_no_group() -> None:
    assert cohort.assign([4, 6], 4) == [[1], [0], [], []]
    assert cohort.assign([], 2) == [[], []]
