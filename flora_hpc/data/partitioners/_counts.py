"""Arithmetic on numbers of examples, for several partitioners."""

import numpy as np
import numpy.typing as npt

from flora_hpc.data.images import Ints
from flora_hpc.errors import UserError


def cut(counts: Ints, total: int, rng: np.random.Generator) -> Ints:
    """Lower the largest of `counts` (n,) int64 to one level, so that the sum is `total`. Smaller sums stay as they are.

    The remainder goes to random lowered counts, one more each. (3, 9, 9) cut to 12 is (3, 5, 4) or (3, 4, 5): an even deal of 12
    among three owners who can take 3, 9 and 9.
    """
    ascending = np.sort(counts)
    rest = total - (np.cumsum(ascending) - ascending)  # of the k-th smallest and all larger counts, if all smaller ones stay
    level = rest // np.arange(len(counts), 0, -1)
    lowered = np.flatnonzero(level < ascending)
    if len(lowered) == 0:
        return counts.copy()
    first = lowered[0]
    result: Ints = np.minimum(counts, level[first])
    remainder = rest[first] - level[first] * (len(counts) - first)
    result[rng.permutation(np.flatnonzero(counts > level[first]))[:remainder]] += 1
    return result


def raised(counts: Ints, least: int, rng: np.random.Generator) -> Ints:
    """Raise `counts` (n,) int64 to `least`; the largest counts are lowered so that the sum stays the same."""
    return cut(np.maximum(counts, least), int(counts.sum()), rng)


def in_turn(sizes: Ints, total: int) -> Ints:
    """How many of `total` items come from each of `sizes` (n,) int64, if each is emptied before the next is touched."""
    taken: Ints = np.clip(total - (np.cumsum(sizes) - sizes), 0, sizes)
    return taken


def deal(shares: npt.NDArray[np.float64], num_items: int, rng: np.random.Generator) -> Ints:
    """The owner of each of `num_items` items: (num_items,) int64, ascending, indices into `shares` (n,), which add up to 1.

    Owner i gets `shares[i] * num_items` items, rounded down or up at random with this mean (systematic sampling).
    """
    places = (np.arange(num_items) + rng.random()) / num_items
    return np.searchsorted(np.cumsum(shares)[:-1], places, side="right").astype(np.int64, copy=False)


def check_least(least: int, num_clients: int, num_examples: int) -> None:
    """Raise UserError if there are too few examples for `least` a client."""
    if num_clients * least > num_examples:
        raise UserError(
            f"partition.min_examples: {num_clients:,} clients with {least:,} examples or more need {num_clients * least:,}, but "
            f"there are {num_examples:,}; lower it, or lower partition.num_clients to {num_examples // least:,} at most"
        )
