"""Who trains this round, in which groups, on which rank. Every rank works this out alike, so nothing is sent."""

import heapq

import numpy as np

from flora_hpc import seeds
from flora_hpc.config import CohortConfig
from flora_hpc.data.images import Ints


def sample(config: CohortConfig, registered: int, seed: int, round_number: int) -> Ints:
    """The clients (num_clients,) int64 of a round, ascending; drawn without replacement from `registered` ones."""
    wanted = config.num_clients(registered)
    if wanted == registered:
        return np.arange(registered, dtype=np.int64)
    drawn = seeds.generator(seed, "cohort", round_number).choice(registered, wanted, replace=False, shuffle=False)
    return np.sort(drawn)


def make_groups(clients: Ints, sizes: Ints, group_size: int) -> list[Ints]:
    """Clients of like size together, largest first, so that few wait for others of their group. -> clients of each group."""
    by_size = clients[np.lexsort((clients, -sizes))]
    return [by_size[i : i + group_size] for i in range(0, len(by_size), group_size)]


def costliest_first(costs: list[int]) -> list[int]:
    """Group numbers, in the order in which groups are given to ranks."""
    return sorted(range(len(costs)), key=lambda group: (-costs[group], group))


def assign(costs: list[int], num_ranks: int, assignment: str = "balanced") -> list[list[int]]:
    """Group numbers of each rank, which may get none.

    static: in turn; balanced: the costliest group first, each to the rank with the least so far, which is also what ranks of the
    same speed take by themselves (dynamic).
    """
    if assignment == "static":
        return [list(range(rank, len(costs), num_ranks)) for rank in range(num_ranks)]
    loads = [(0, rank) for rank in range(num_ranks)]
    result: list[list[int]] = [[] for _ in range(num_ranks)]
    for group in costliest_first(costs):
        load, rank = heapq.heappop(loads)
        result[rank].append(group)
        heapq.heappush(loads, (load + costs[group], rank))
    return result
