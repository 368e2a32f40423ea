import heapq
from itertools import chain

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flora_hpc import cohort
from flora_hpc.cohort import Grouping
from flora_hpc.config import CohortConfig


def sample(registered: int = 40, seed: int = 0, number: int = 1, **config: float) -> list[int]:
    return cohort.sample(CohortConfig(**config), registered, seed, number).tolist()


# --- who trains


def test_everybody_unless_told_otherwise() -> None:
    assert sample(5) == [0, 1, 2, 3, 4]
    assert sample(5, fraction=1.0) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("config", "num_clients"), [({"fraction": 0.25}, 10), ({"size": 7}, 7), ({"size": 40}, 40)])
def test_a_share_or_a_number_of_clients_ascending_and_none_twice(config: dict[str, float], num_clients: int) -> None:
    drawn = sample(**config)
    assert len(drawn) == num_clients
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


def test_a_large_cohort_has_every_client_once_and_a_rank_finds_its_part_alone() -> None:
    config, registered = CohortConfig(size=cohort.LARGE), 3 * cohort.LARGE
    drawn = cohort.sample(config, registered, 0, 1)
    assert len(np.unique(drawn)) == cohort.LARGE
    assert drawn.min() >= 0
    assert drawn.max() < registered
    places = np.array([5, cohort.LARGE - 1, 0])
    np.testing.assert_array_equal(cohort.whole_cohort(config, registered, 0).finder(1)(places), drawn[places])


@pytest.mark.parametrize("size", [5, 40])
def test_places_stand_for_the_clients_of_the_round(size: int) -> None:
    schedule = cohort.whole_cohort(CohortConfig(size=size), 40, 3)
    np.testing.assert_array_equal(schedule.finder(2)(np.arange(size)), schedule.clients(2))


# --- in which groups, on which rank


def groups(costs: list[int], num_ranks: int = 1, assignment: str = "balanced", **grouping: int) -> list[list[list[int]]]:
    """The groups of each rank, of clients 100, 101, ... with these costs."""
    clients, numbers = np.arange(100, 100 + len(costs)), np.array(costs)
    by_rank = cohort.groups_of_ranks(clients, numbers, Grouping(**{"most": 100} | grouping), num_ranks, assignment)
    return [[group.tolist() for group in local_groups] for local_groups in by_rank]


def test_clients_of_like_cost_are_grouped_the_costliest_first_in_as_few_groups_of_like_size_as_may_be() -> None:
    assert groups([10, 40, 20, 40, 30], most=2) == [[[101, 103], [104, 102], [100]]]
    assert groups([1] * 7, most=5) == [[[100, 101, 102, 103], [104, 105, 106]]]
    assert groups([2, 1, 2, 1, 2], alike=True) == [[[100, 102, 104], [101, 103]]]
    assert groups([2, 1, 2, 1, 2], alike=True, most=2) == [[[100, 102], [104], [101, 103]]]


def test_the_costliest_client_goes_first_to_the_rank_with_the_least() -> None:
    """5 | -, 5 | 4, 5 | 4+3, 5+2 | 4+3, and the last to the first of equals."""
    assert groups([3, 5, 2, 4, 1], 2) == [[[101, 102, 104]], [[103, 100]]]


def test_static_clients_go_to_ranks_in_turn_whatever_they_cost() -> None:
    assert groups([9, 5, 2, 4, 1], 2, "static") == [[[100, 103, 104]], [[101, 102]]]
    assert groups([3], 2, "static") == [[[100]], []]


def test_idle_ranks_take_some_groups_each() -> None:
    """Sixteen clients for two ranks are eight pieces of work; here, as ranks of the same speed take them."""
    by_rank = groups([1] * 16, 2, "dynamic")
    assert [[len(group) for group in local_groups] for local_groups in by_rank] == [[2] * 4] * 2
    assert [len(group) for group in cohort.units(cohort.equal(1, 3), Grouping(100), 2)] == [1, 1, 1]


@pytest.mark.parametrize("assignment", ["balanced", "static", "dynamic"])
def test_fixed_groups_are_the_same_on_any_number_of_ranks(assignment: str) -> None:
    costs = np.random.default_rng(0).integers(1, 9, 33).tolist()
    by_size = [groups(costs, ranks, assignment, most=4, fixed=True) for ranks in (1, 2, 5, 20)]
    for by_rank in by_size:
        assert sorted(chain(*by_rank)) == sorted(chain(*by_size[0]))
        assert sorted(map(len, chain(*by_rank))) == [1] + [4] * 8
    assert sorted(map(len, by_size[-1])) == [0] * 11 + [1] * 9


@pytest.mark.parametrize("assignment", ["balanced", "static", "dynamic"])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8, 50])
@pytest.mark.parametrize("alike", [False, True])
def test_every_client_is_in_one_group(num_ranks: int, assignment: str, alike: bool) -> None:
    costs = np.random.default_rng(0).integers(1, 9, 33).tolist()
    by_rank = groups(costs, num_ranks, assignment, most=4, alike=alike)
    together = list(chain(*by_rank))
    assert sorted(chain(*together)) == list(range(100, 133))
    assert max(map(len, together)) <= 4
    assert all(by_rank) or num_ranks == 50, "no rank is idle while there are clients for it"
    if alike:
        assert all(len({costs[client - 100] for client in group}) == 1 for group in together)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(costs=st.lists(st.integers(1, 12), min_size=1, max_size=60), num_ranks=st.integers(1, 9))
def test_balanced_is_what_a_heap_deals_one_by_one(costs: list[int], num_ranks: int) -> None:
    costs = sorted(costs, reverse=True)
    heap = [(0, rank) for rank in range(num_ranks)]
    for cost in costs:
        load, rank = heapq.heappop(heap)
        heapq.heappush(heap, (load + cost, rank))
    in_order = cohort.sort(np.array(costs))
    numbers = np.array(list(cohort.deal(in_order, num_ranks)))
    assert numbers.sum(1).tolist() == in_order.counts.tolist()
    assert (in_order.values @ numbers).tolist() == [load for load, _ in sorted(heap, key=lambda place: place[1])]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    costs=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    num_ranks=st.integers(1, 9),
    assignment=st.sampled_from(["static", "balanced", "dynamic"]),
    fixed=st.booleans(),
    alike=st.booleans(),
)
def test_a_rank_computes_alone_what_all_ranks_together_have(
    costs: list[int], num_ranks: int, assignment: str, fixed: bool, alike: bool
) -> None:
    grouping, in_order = Grouping(4, alike, fixed), cohort.sort(np.array(costs))
    everybody = cohort.places_of_ranks(in_order, grouping, num_ranks, assignment)
    for rank in range(num_ranks):
        (own,) = cohort.places_of_ranks(in_order, grouping, num_ranks, assignment, [rank])
        assert [group.tolist() for group in own] == [group.tolist() for group in everybody[rank]]


@pytest.mark.parametrize("grouping", [Grouping(3), Grouping(3, alike=True), Grouping(3, fixed=True)])
@pytest.mark.parametrize("assignment", ["static", "balanced", "dynamic"])
def test_equal_costs_need_no_list(grouping: Grouping, assignment: str) -> None:
    for num_ranks in (1, 2, 7, 30):
        known, listed = (
            cohort.places_of_ranks(costs, grouping, num_ranks, assignment)
            for costs in (cohort.equal(4, 20), cohort.sort(np.full(20, 4)))
        )
        assert [[g.tolist() for g in groups] for groups in known] == [[g.tolist() for g in groups] for groups in listed]


def test_costs_beyond_16_bits_are_sorted_alike() -> None:
    costs = np.array([1, 10**6, 3, 10**6, 70_000])
    in_order = cohort.sort(costs)
    assert in_order.places(np.arange(5)).tolist() == [1, 3, 4, 2, 0]
    assert (in_order.values.tolist(), in_order.counts.tolist()) == ([10**6, 70_000, 3, 1], [2, 1, 1, 1])
    assert in_order.up_to(np.array([0, 1, 2, 5])).tolist() == [0, 10**6, 2 * 10**6, 2_070_004]
