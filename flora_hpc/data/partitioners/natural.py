"""Clients are the values of a column of the data: writers, domains, stations.

Split: with as many clients as values, client i is the i-th value. With fewer, values are dealt out whole, the largest first and
always to the client with the fewest examples so far (Graham, "Bounds on Multiprocessing Timing Anomalies", SIAM Journal on Applied
Mathematics 1969), values of one size in random order; set `num_clients` to the number of values to have one each. Such splits are
those of LEAF (Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018).

Population: a client draws its examples from one value, chosen at random weighted by its number of examples; where this has too few,
it takes all of them and goes on to further values, chosen likewise.
"""

import heapq

import numpy as np
from pydantic import Field

from flora_hpc.data.holdings import Partitioner, PartitionOptions
from flora_hpc.data.images import Images, Ints
from flora_hpc.data.partitioners._counts import in_turn
from flora_hpc.data.partitioners._groups import Groups, group
from flora_hpc.errors import UserError

WORDS = {"", "nan", "none", "null"}  # that programs write for a value that is missing


class Options(PartitionOptions):
    """Which column."""

    column: str = Field(description="column of the data whose values are the clients, such as writer, domain or station")


def build(options: Options, images: Images) -> Partitioner:
    column = images.column(options.column, "partition.column")
    values = group(column)
    if num_missing := int(values.sizes[[_is_missing(value) for value in values.names.tolist()]].sum()):
        raise UserError(
            f"partition.column: '{options.column}' has no value (NaN, a blank, or a word such as none) for {num_missing:,} of "
            f"{len(column):,} images, which would all be one client; fill it in, or take another column"
        )

    def split(num_clients: int, rng: np.random.Generator) -> Ints:
        if num_clients > len(values):
            raise UserError(
                f"partition.num_clients: {num_clients:,} clients, but column '{options.column}' of the training images has "
                f"{len(values):,} values; lower it to {len(values):,} at most"
            )
        return _balanced(values.sizes, num_clients, rng)[values.of]

    def draw(num_drawn: int, rng: np.random.Generator) -> Ints:
        chosen = _weighted(values, num_drawn, rng)
        counts = np.zeros(len(values), np.int64)
        counts[chosen] = in_turn(values.sizes[chosen], num_drawn)
        return values.draw(counts, rng)

    return Partitioner(split, draw)


def _is_missing(value: object) -> bool:
    """Whether a value of a column stands for none."""
    return value.strip().lower() in WORDS if isinstance(value, str) else value != value


def _balanced(sizes: Ints, num_clients: int, rng: np.random.Generator) -> Ints:
    """The client (num_values,) int64 of each value. Clients are numbered by the first value that they have."""
    mixed = rng.permutation(len(sizes))
    largest_first = mixed[np.argsort(-sizes[mixed], kind="stable")]
    owners = np.empty(len(sizes), np.int64)
    first, rest = largest_first[:num_clients], largest_first[num_clients:].tolist()
    owners[first] = np.arange(num_clients)
    # a load and its client in one number take a third of the memory of a pair; sorted numbers are a heap
    loads = np.sort(sizes[first] * num_clients + np.arange(num_clients)).tolist() if rest else []
    for value in rest:
        owners[value] = loads[0] % num_clients
        heapq.heapreplace(loads, loads[0] + int(sizes[value]) * num_clients)
    _, firsts = np.unique(owners, return_index=True)
    numbers = np.empty(num_clients, np.int64)
    numbers[np.argsort(firsts)] = np.arange(num_clients)
    return numbers[owners]


def _weighted(values: Groups, num_drawn: int, rng: np.random.Generator) -> Ints:
    """Values with `num_drawn` examples or more, in the order in which they are drawn: weighted by size, none twice.

    The values of random examples do, the first time each turns up. Should they be too few, all others follow in the order of
    exponential clocks that run as fast as a value is large, which is the same law and costs as much as there are values.
    """
    drawn = values.of[rng.integers(len(values.of), size=num_drawn)]
    _, firsts = np.unique(drawn, return_index=True)
    chosen = drawn[np.sort(firsts)]
    if values.sizes[chosen].sum() >= num_drawn:
        return chosen
    others = np.delete(np.arange(len(values)), chosen)
    return np.concatenate([chosen, others[np.argsort(rng.exponential(size=len(others)) / values.sizes[others])]])
