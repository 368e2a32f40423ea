"""Sample the clients of a round, cut them into groups, assign groups to ranks. Every rank computes this, so nothing is sent."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from flora_hpc import seeds
from flora_hpc.config import CohortConfig
from flora_hpc.data.images import Ints

UNITS = 4  # groups for each rank, where idle ranks take the next group


def sample(config: CohortConfig, registered: int, seed: int, round_number: int) -> Ints:
    """Draw the clients (num_clients,) int64 of a round without replacement from `registered` clients; ascending."""
    num_clients = config.num_clients(registered)
    if num_clients == registered:
        return np.arange(registered, dtype=np.int64)
    rng = seeds.generator(seed, "cohort", round_number)
    return np.sort(rng.choice(registered, num_clients, replace=False, shuffle=False))


class Schedule(NamedTuple):
    """Who takes part in a round: `clients(number) -> (n,) int64`, ascending. It is known before training, on every rank alike."""

    clients: Callable[[int], Ints]


def whole_cohort(config: CohortConfig, registered: int, seed: int) -> Schedule:
    """Every client of a round's random cohort takes part, and all of them reach the server."""
    return Schedule(partial(sample, config, registered, seed))


@dataclass(frozen=True)
class Grouping:
    """Rules for groups of clients; a group trains in one batch of tensors."""

    most: int  # clients of a group
    alike: bool = False  # whether all clients of a group must have the same cost, so that none is padded to a longer one
    fixed: bool = False  # whether groups must be the same on any number of ranks, since the size of a group decides bits


def groups_of_ranks(
    clients: Ints, costs: Ints, grouping: Grouping, num_ranks: int, assignment: str, ranks: Iterable[int] | None = None
) -> list[list[Ints]]:
    """The groups of clients that each rank trains, or each of `ranks`; a rank may have no group.

    `costs` (n,) int64 are the costs of `clients` (n,).

    static: clients go to ranks in turn; balanced: the costliest client first, each to the rank with the lowest load so far. Fixed
    groups are assigned whole. So are groups of dynamic assignment: the result is then what ranks of the same speed would take. The
    clients of a group have similar costs, the costliest first, so that few clients wait for others.
    """
    order = _costliest_first(clients, costs)
    clients, costs = clients[order], costs[order]
    if not grouping.fixed and assignment != "dynamic":
        assigned = deal(costs, num_ranks, assignment)
        masks = [assigned == rank for rank in ranks or range(num_ranks)]
        return [_cut(clients[mask], costs[mask], grouping) for mask in masks]
    groups = units(clients, costs, grouping, num_ranks)
    ends = np.cumsum([len(group) for group in groups])
    totals = np.diff(np.cumsum(costs)[ends - 1], prepend=0)
    order = _costliest_first(np.arange(len(groups)), totals)
    assigned = deal(totals[order], num_ranks, assignment)
    return [[groups[group] for group in order[assigned == rank]] for rank in ranks or range(num_ranks)]


def units(clients: Ints, costs: Ints, grouping: Grouping, num_ranks: int) -> list[Ints]:
    """The groups of all `clients` for dynamic assignment, the costliest first: an idle rank takes the next group."""
    order = _costliest_first(clients, costs)
    clients, costs = clients[order], costs[order]
    if grouping.fixed:
        return [part for part in np.split(clients, range(grouping.most, len(clients), grouping.most)) if len(part)]
    most = max(1, min(grouping.most, len(clients) // (UNITS * num_ranks)))
    return _cut(clients, costs, Grouping(most, grouping.alike))


def deal(costs: Ints, num_ranks: int, assignment: str = "balanced") -> Ints:
    """Assign each piece of work to a rank (n,) int64, by whole-number `costs` (n,) > 0, descending; see `groups_of_ranks`.

    All pieces of the same cost are assigned in one step.
    """
    if assignment == "static":
        return np.arange(len(costs)) % num_ranks
    loads, ranks = np.zeros(num_ranks, np.int64), [np.zeros(0, np.int64)]
    values, counts = np.unique(costs, return_counts=True)
    for cost, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        numbers = _least_loaded(loads, cost, count)
        loads += cost * numbers
        ranks.append(np.repeat(np.arange(num_ranks), numbers))
    return np.concatenate(ranks)


def _least_loaded(loads: Ints, cost: int, count: int) -> Ints:
    """How many of `count` pieces of the same cost each rank gets, when each piece goes to the first rank with the lowest load.

    Rank r would take pieces at the levels loads[r], loads[r] + cost, ...; the `count` smallest levels of all ranks are taken.

        level    0  1  2  3  4  5        loads = [0, 3], cost = 2, count = 3
        rank 0   x     x     .           rank 0 takes pieces at levels 0 and 2,
        rank 1            x     .        rank 1 takes one at level 3
    """

    def pieces_up_to(level: int) -> Ints:
        return np.maximum(0, (level - loads) // cost + 1)

    low, high = int(loads.min()) - 1, int(loads.min()) + cost * count  # bisect for the last level with at most `count` pieces
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if pieces_up_to(middle).sum() <= count else (low, middle)
    numbers = pieces_up_to(low)
    next_ranks = np.flatnonzero(pieces_up_to(low + 1) > numbers)
    numbers[next_ranks[: count - numbers.sum()]] += 1
    return numbers


def _costliest_first(clients: Ints, costs: Ints) -> Ints:
    """Indices (n,) that sort `clients` by descending cost, and those of equal cost by number."""
    return np.lexsort((clients, -costs))


def _cut(clients: Ints, costs: Ints, grouping: Grouping) -> list[Ints]:
    """Cut `clients`, sorted by descending cost, into as few groups as possible, of similar size."""
    groups = []
    for part in np.split(clients, np.flatnonzero(np.diff(costs)) + 1 if grouping.alike else []):
        groups += np.array_split(part, -(-len(part) // grouping.most)) if len(part) else []
    return groups
