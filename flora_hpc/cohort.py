"""Who trains this round, in which groups, on which rank. Every rank works this out alike, so nothing is sent."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from flora_hpc import seeds
from flora_hpc.config import CohortConfig
from flora_hpc.data.images import Ints

UNITS = 4  # of work for each rank, where idle ranks take the next one


def sample(config: CohortConfig, registered: int, seed: int, round_number: int) -> Ints:
    """The clients (num_clients,) int64 of a round, ascending; drawn without replacement from `registered` ones."""
    wanted = config.num_clients(registered)
    if wanted == registered:
        return np.arange(registered, dtype=np.int64)
    drawn = seeds.generator(seed, "cohort", round_number).choice(registered, wanted, replace=False, shuffle=False)
    return np.sort(drawn)


@dataclass(frozen=True)
class Grouping:
    """How clients are put into groups, each of which trains in one batch of tensors."""

    most: int  # clients of a group
    alike: bool = False  # whether all clients of a group must cost the same, so that none computes more beside a longer one
    fixed: bool = False  # whether groups must be the same on any number of ranks, since their size decides bits


def groups_of_ranks(
    clients: Ints, costs: Ints, grouping: Grouping, num_ranks: int, assignment: str, wanted: Iterable[int] | None = None
) -> list[list[Ints]]:
    """The groups of clients that each rank trains, or each of those `wanted`; they may be none.

    `costs` (n,) int64 are those of `clients` (n,).

    static: clients go to ranks in turn; balanced: the costliest first, each to the rank with the least so far. Fixed groups go as
    wholes; so do those of dynamic assignment, for which this is what ranks of the same speed take. In a group are clients of like
    cost, the costliest first, so that few wait for others.
    """
    order = _costliest_first(clients, costs)
    clients, costs = clients[order], costs[order]
    if not grouping.fixed and assignment != "dynamic":
        ranks = deal(costs, num_ranks, assignment)
        return [_cut(clients[mine], costs[mine], grouping) for mine in (ranks == rank for rank in wanted or range(num_ranks))]
    groups = units(clients, costs, grouping, num_ranks)
    ends = np.cumsum([len(group) for group in groups])
    totals = np.diff(np.cumsum(costs)[ends - 1], prepend=0)
    order = _costliest_first(np.arange(len(groups)), totals)
    ranks = deal(totals[order], num_ranks, assignment)
    return [[groups[group] for group in order[ranks == rank]] for rank in wanted or range(num_ranks)]


def units(clients: Ints, costs: Ints, grouping: Grouping, num_ranks: int) -> list[Ints]:
    """The groups of all `clients`, the costliest first, from which ranks take the next one when they are idle."""
    order = _costliest_first(clients, costs)
    clients, costs = clients[order], costs[order]
    if grouping.fixed:
        return [part for part in np.split(clients, range(grouping.most, len(clients), grouping.most)) if len(part)]
    few = max(1, min(grouping.most, len(clients) // (UNITS * num_ranks)))
    return _cut(clients, costs, Grouping(few, grouping.alike))


def deal(costs: Ints, num_ranks: int, assignment: str = "balanced") -> Ints:
    """The rank (n,) int64 of each piece of work, for whole-number `costs` (n,) > 0, the largest first; see `groups_of_ranks`.

    Pieces of equal cost are dealt at once.
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
    """How many of `count` pieces of the same cost each rank gets, each going to the first rank of those with the least so far.

    Rank r takes its pieces at loads[r], loads[r] + cost, ...: those are the `count` smallest of all these numbers.
    """

    def up_to(level: int) -> Ints:
        return np.maximum(0, (level - loads) // cost + 1)

    low, high = int(loads.min()) - 1, int(loads.min()) + cost * count  # by bisection: the last level that takes no more than all
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if up_to(middle).sum() <= count else (low, middle)
    numbers = up_to(low)
    next_ones = np.flatnonzero(up_to(low + 1) > numbers)
    numbers[next_ones[: count - numbers.sum()]] += 1
    return numbers


def _costliest_first(clients: Ints, costs: Ints) -> Ints:
    """Places (n,) of `clients`, of equal ones the lowest number first."""
    return np.lexsort((clients, -costs))


def _cut(clients: Ints, costs: Ints, grouping: Grouping) -> list[Ints]:
    """Groups of `clients`, the costliest of which come first; as few as may be, and of like size."""
    groups = []
    for part in np.split(clients, np.flatnonzero(np.diff(costs)) + 1 if grouping.alike else []):
        groups += np.array_split(part, -(-len(part) // grouping.most)) if len(part) else []
    return groups
