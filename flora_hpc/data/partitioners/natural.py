"""Clients are the values of a column of the data: writers, domains, stations.

Split: with as many clients as values, client i holds the i-th value, as in LEAF (Caldas et al., "LEAF: A Benchmark for Federated
Settings", 2018). With fewer clients, values are dealt out whole, the largest first, each to the client with the fewest examples so
far (Graham, "Bounds on Multiprocessing Timing Anomalies", SIAM Journal on Applied Mathematics 1969). Values of one size come in
random order. Set `num_clients` to the number of values for one value each.

Population: a client chooses a value at random, weighted by its number of examples, and draws its examples from it. If the value has
too few, the client takes all of them and chooses further values in the same way.
"""

import heapq

import numpy as np
from pydantic import Field

from flora_hpc.data.holdings import Partitioner, PartitionOptions
from flora_hpc.data.images import Images, Ints
from flora_hpc.data.partitioners._counts import in_turn
from flora_hpc.data.partitioners._groups import Groups, group
from flora_hpc.errors import UserError

WORDS = {"", "nan", "none", "null"}  # texts that programs write for a missing value


class Options(PartitionOptions):
    """The column."""

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
        return _balanced(values.sizes, num_clients, rng)[values.group_of]

    def draw(num_drawn: int, rng: np.random.Generator) -> Ints:
        chosen = _weighted(values, num_drawn, rng)
        counts = np.zeros(len(values), np.int64)
        counts[chosen] = in_turn(values.sizes[chosen], num_drawn)
        return values.draw(counts, rng)

    return Partitioner(split, draw)


def _is_missing(value: object) -> bool:
    """Whether a value of a column means that there is none."""
    return value.strip().lower() in WORDS if isinstance(value, str) else value != value


def _balanced(sizes: Ints, num_clients: int, rng: np.random.Generator) -> Ints:
    """The client (num_values,) int64 of each value. Clients are numbered in the order of their first values."""
    mixed = rng.permutation(len(sizes))
    largest_first = mixed[np.argsort(-sizes[mixed], kind="stable")]
    owners = np.empty(len(sizes), np.int64)
    first, rest = largest_first[:num_clients], largest_first[num_clients:].tolist()
    owners[first] = np.arange(num_clients)
    # one number for load and client takes a third of the memory of a pair; sorted numbers are a heap
    loads = np.sort(sizes[first] * num_clients + np.arange(num_clients)).tolist() if rest else []
    for value in rest:
        owners[value] = loads[0] % num_clients
        heapq.heapreplace(loads, loads[0] + int(sizes[value]) * num_clients)
    _, firsts = np.unique(owners, return_index=True)
    numbers = np.empty(num_clients, np.int64)
    numbers[np.argsort(firsts)] = np.arange(num_clients)
    return numbers[owners]


def _weighted(values: Groups, num_drawn: int, rng: np.random.Generator) -> Ints:
    """Draw values, weighted by size and none twice, until they have `num_drawn` examples or more; in the order drawn.

    The values of random examples, without repetitions, have this distribution. If they have too few examples, all other values
    follow in the order of exponential clocks with their sizes as rates: the same distribution, at a cost of the number of values.
    """
    drawn = values.group_of[rng.integers(len(values.group_of), size=num_drawn)]
    _, firsts = np.unique(drawn, return_index=True)
    chosen = drawn[np.sort(firsts)]
    if values.sizes[chosen].sum() >= num_drawn:
        return chosen
    rest = np.delete(np.arange(len(values)), chosen)
    return np.concatenate([chosen, rest[np.argsort(rng.exponential(size=len(rest)) / values.sizes[rest])]])
