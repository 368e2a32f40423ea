"""Arithmetic on numbers of examples that several partitioners share."""

import numpy as np
import numpy.typing as npt

from flora_hpc.data.images import Ints
from flora_hpc.errors import UserError


def cut(counts: Ints, total: int, rng: np.random.Generator) -> Ints:
    """Counts (n,) int64 with the largest lowered to one level, so that they add up to `total` or, if that is more, as they are.

    What the level leaves over goes to some of those that were lowered, one more each, at random. (3, 9, 9) cut to 12 is
    (3, 5, 4) or (3, 4, 5): an even deal of 12 among three who can take that much.
    """
    ascending = np.sort(counts)
    left = total - (np.cumsum(ascending) - ascending)  # for the k-th smallest and those above it, when all below keep theirs
    level = left // np.arange(len(counts), 0, -1)
    lowered = np.flatnonzero(level < ascending)
    if len(lowered) == 0:
        return counts.copy()
    first = lowered[0]
    result: Ints = np.minimum(counts, level[first])
    over = left[first] - level[first] * (len(counts) - first)
    result[rng.permutation(np.flatnonzero(counts > level[first]))[:over]] += 1
    return result


def raised(counts: Ints, least: int, rng: np.random.Generator) -> Ints:
    """Counts (n,) int64 of `least` or more with the same sum, what is missing being taken from the largest."""
    return cut(np.maximum(counts, least), int(counts.sum()), rng)


def in_turn(sizes: Ints, total: int) -> Ints:
    """How many of `total` are taken from each (n,) int64 when each is emptied before the next is touched."""
    taken: Ints = np.clip(total - (np.cumsum(sizes) - sizes), 0, sizes)
    return taken


def deal(shares: npt.NDArray[np.float64], num_items: int, rng: np.random.Generator) -> Ints:
    """Who gets each of `num_items` items: (num_items,) int64, ascending, indices into `shares` (n,), which add up to 1.

    Owner i gets `shares[i] * num_items` items, rounded down or up at random so that this is the mean (systematic sampling).
    """
    places = (np.arange(num_items) + rng.random()) / num_items
    return np.searchsorted(np.cumsum(shares)[:-1], places, side="right").astype(np.int64, copy=False)


def check_least(least: int, num_clients: int, num_examples: int) -> None:
    """Refuse a minimum that all clients together cannot reach."""
    if num_clients * least > num_examples:
        raise UserError(
            f"partition.min_examples: {num_clients:,} clients with {least:,} examples or more need {num_clients * least:,}, but "
            f"there are {num_examples:,}; lower it, or lower partition.num_clients to {num_examples // least:,} at most"
        )
