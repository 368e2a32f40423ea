"""Sample the clients of a round, cut them into groups, assign groups to ranks. Every rank computes this, so nothing is sent.

A rank computes its own groups alone, and only what it needs for them. Place i stands for the i-th client of the round:

    costs of the clients       one number where all are alike, else one for each place
    -> Costs                   runs of places with the same cost, the costliest first
    -> deal                    how many places of each run every rank gets
    -> places of this rank     a slice of each run
    -> its groups              and only then the numbers of these clients
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from flora_hpc import seeds
from flora_hpc.config import CohortConfig
from flora_hpc.data.images import Ints

UNITS = 4  # groups for each rank, where idle ranks take the next group
LARGE = 2**17  # clients; NumPy draws so many in 0.01 s, and a rank draws its part of more in less
RADIX = 2**16  # NumPy sorts 16 bits ten times as fast as 64


def sample(config: CohortConfig, registered: int, seed: int, round_number: int) -> Ints:
    """Draw the clients (num_clients,) int64 of a round without replacement from `registered` clients.

    They ascend, but for those of LARGE cohorts or more, which are the first of a random order of all registered clients.
    """
    num_clients = config.num_clients(registered)
    if num_clients == registered:
        return np.arange(registered, dtype=np.int64)
    if num_clients >= LARGE:
        return at_places(registered, seed, round_number, np.arange(num_clients))
    rng = seeds.generator(seed, "cohort", round_number)
    return np.sort(rng.choice(registered, num_clients, replace=False, shuffle=False))


def at_places(registered: int, seed: int, round_number: int, places: Ints) -> Ints:
    """The clients (n,) at `places` (n,) of a large cohort; no other client is drawn for that."""
    return seeds.permuted(seed, "cohort", round_number, of=places, among=registered)


class Schedule(NamedTuple):
    """Who takes part in a round: `clients(number) -> (n,) int64`. It is known before training, on every rank alike.

    `finder(number)` gives a function: places (n,) in such a round -> its clients (n,) there.
    """

    clients: Callable[[int], Ints]
    finder: Callable[[int], Callable[[Ints], Ints]]


def whole_cohort(config: CohortConfig, registered: int, seed: int) -> Schedule:
    """Every client of a round's random cohort takes part, and all of them reach the server."""

    def finder(number: int) -> Callable[[Ints], Ints]:
        num_clients = config.num_clients(registered)
        if num_clients == registered:
            return lambda places: places
        if num_clients >= LARGE:
            return partial(at_places, registered, seed, number)
        clients = sample(config, registered, seed, number)
        return lambda places: clients[places]

    return Schedule(partial(sample, config, registered, seed), finder)


@dataclass(frozen=True)
class Grouping:
    """Rules for groups of clients; a group trains in one batch of tensors."""

    most: int  # clients of a group
    alike: bool = False  # whether all clients of a group must have the same cost, so that none is padded to a longer one
    fixed: bool = False  # whether groups must be the same on any number of ranks, since the size of a group decides bits


@dataclass(frozen=True)
class Costs:
    """The costs of a round's places, as runs of the same cost, the costliest first; `sort` and `equal` make them."""

    values: Ints  # (num_runs,) descending
    counts: Ints  # (num_runs,), places of each
    order: Ints | None = None  # (n,) the places, run after run and ascending in each; None: as they are

    @cached_property
    def ends(self) -> Ints:
        """The position behind each run (num_runs,)."""
        return np.cumsum(self.counts)

    @property
    def num_places(self) -> int:
        """How many places there are."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def places(self, positions: Ints) -> Ints:
        """The places at positions of the order."""
        return positions if self.order is None else self.order[positions]

    def up_to(self, positions: Ints) -> Ints:
        """The sum of the costs of all places before each of `positions` (n,)."""
        run = np.searchsorted(self.ends, positions, "left")
        totals = self.values * self.counts
        costs: Ints = (np.cumsum(totals) - totals)[run] + (positions - (self.ends - self.counts)[run]) * self.values[run]
        return costs


def equal(cost: int, num_places: int) -> Costs:
    """The costs of places that all cost the same."""
    return Costs(np.array([cost]), np.array([num_places]))


def sort(costs: Ints) -> Costs:
    """The places of `costs` (n,) int64, sorted."""
    keys = costs.max(initial=0) - costs
    order = np.argsort(keys.astype(np.uint16) if keys.max(initial=0) < RADIX else keys, kind="stable")
    in_order = costs[order]
    begins = np.flatnonzero(np.diff(in_order, prepend=in_order[:1] + 1))
    return Costs(in_order[begins], np.diff(np.append(begins, len(costs))), order)


def groups_of_ranks(
    clients: Ints, costs: Ints, grouping: Grouping, num_ranks: int, assignment: str, ranks: Iterable[int] | None = None
) -> list[list[Ints]]:
    """The groups of `clients` (n,) with `costs` (n,) that each rank trains, or each of `ranks`; see `places_of_ranks`."""
    by_rank = places_of_ranks(sort(costs), grouping, num_ranks, assignment, ranks)
    return [[clients[places] for places in groups] for groups in by_rank]


def places_of_ranks(
    costs: Costs, grouping: Grouping, num_ranks: int, assignment: str, ranks: Iterable[int] | None = None
) -> list[list[Ints]]:
    """The groups of places that each rank trains, or each of `ranks`; a rank may have no group.

    static: clients go to ranks in turn; balanced: the costliest client first, each to the rank with the lowest load so far. Fixed
    groups are assigned whole. So are groups of dynamic assignment: the result is then what ranks of the same speed would take. The
    clients of a group have similar costs, the costliest first, so that few clients wait for others.
    """
    ranks = range(num_ranks) if ranks is None else ranks
    if not grouping.fixed and assignment != "dynamic":
        return [_cut(costs, positions, grouping) for positions in positions_of_ranks(costs, num_ranks, assignment, ranks)]
    bounds = unit_bounds(costs, grouping, num_ranks)
    of_units = sort(np.diff(costs.up_to(bounds)))
    return [
        [costs.places(np.arange(bounds[unit], bounds[unit + 1])) for unit in of_units.places(positions)]
        for positions in positions_of_ranks(of_units, num_ranks, assignment, ranks)
    ]


def positions_of_ranks(costs: Costs, num_ranks: int, assignment: str, ranks: Iterable[int]) -> list[Ints]:
    """The positions in the order of `costs` that each of `ranks` gets."""
    if assignment == "static":
        return [np.arange(rank, costs.num_places, num_ranks) for rank in ranks]
    ranks, begin = list(ranks), 0
    parts: list[list[Ints]] = [[np.zeros(0, np.int64)] for _ in ranks]
    for numbers, count in zip(deal(costs, num_ranks), costs.counts.tolist(), strict=True):
        ends = begin + np.cumsum(numbers)
        for part, rank in zip(parts, ranks, strict=True):
            if numbers[rank]:
                part.append(np.arange(ends[rank] - numbers[rank], ends[rank]))
        begin += count
    return [np.concatenate(part) for part in parts]


def units(costs: Costs, grouping: Grouping, num_ranks: int) -> list[Ints]:
    """The groups of all places for dynamic assignment, the costliest first: an idle rank takes the next group."""
    return [costs.places(np.arange(*pair)) for pair in pairwise(unit_bounds(costs, grouping, num_ranks).tolist())]


def unit_bounds(costs: Costs, grouping: Grouping, num_ranks: int) -> Ints:
    """The positions (num_units + 1,) at which groups begin that do not belong to a rank beforehand, and the last end."""
    total = costs.num_places
    if grouping.fixed:
        return np.append(np.arange(0, total, grouping.most), total)
    most = max(1, min(grouping.most, total // (UNITS * num_ranks)))
    sizes = _sizes(costs.counts if grouping.alike else np.array([total]), most)
    return np.append(0, np.cumsum(sizes))


def deal(costs: Costs, num_ranks: int) -> Iterator[Ints]:
    """For each run of `costs`, how many of its places each rank gets (num_ranks,): always the first rank with the lowest load."""
    loads = np.zeros(num_ranks, np.int64)
    for cost, count in zip(costs.values.tolist(), costs.counts.tolist(), strict=True):
        numbers = _least_loaded(loads, cost, count)
        loads += cost * numbers
        yield numbers


def _least_loaded(loads: Ints, cost: int, count: int) -> Ints:
    """How many of `count` pieces of the same cost each rank gets, when each piece goes to the first rank with the lowest load.

    Rank r would take pieces at the levels loads[r], loads[r] + cost, ...; the `count` smallest levels of all ranks are taken.

        level    0  1  2  3  4  5        loads = [0, 3], cost = 2, count = 3
        rank 0   x     x     .           rank 0 takes pieces at levels 0 and 2,
        rank 1            x     .        rank 1 takes one at level 3

    The last level is bisected between two bounds: at `low` no more than `count` levels are taken, even if all loads were the least
    one; at `high` more, even if ranks took as many as their loads were above it less.
    """

    def pieces_up_to(level: int) -> Ints:
        return np.maximum(0, (level - loads) // cost + 1)

    low = int(loads.min()) + cost * (count // len(loads)) - 1
    high = -(-(cost * count + int(loads.sum())) // len(loads))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if pieces_up_to(middle).sum() <= count else (low, middle)
    numbers = pieces_up_to(low)
    next_ranks = np.flatnonzero(pieces_up_to(low + 1) > numbers)
    numbers[next_ranks[: count - numbers.sum()]] += 1
    return numbers


def _cut(costs: Costs, positions: Ints, grouping: Grouping) -> list[Ints]:
    """Cut the places at `positions`, which ascend, into as few groups as possible, of similar size."""
    counts = np.array([len(positions)])
    if grouping.alike:
        counts = np.unique(np.searchsorted(costs.ends, positions, "right"), return_counts=True)[1]
    return np.split(costs.places(positions), np.cumsum(_sizes(counts, grouping.most))[:-1]) if len(positions) else []


def _sizes(counts: Ints, most: int) -> Ints:
    """The sizes of groups of at most `most` into which each of `counts` (n,) clients is cut, one after the other.

    Groups of the same count differ by one client at most, the larger ones first.
    """
    numbers = -(-counts // most)
    count, number = np.repeat(counts, numbers), np.repeat(numbers, numbers)
    index = np.arange(len(number)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    return count // number + (index < count % number)
