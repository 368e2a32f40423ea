"""Which clients of a round have a row in /clients. Every rank can work this out, so the other rows are never sent."""

from collections.abc import Callable

import numpy as np

from flora_hpc import seeds
from flora_hpc.records.known import Ints


def chosen(seed: int, number: int, most: int, num_clients: int, find: Callable[[Ints], Ints]) -> Ints:
    """Draw `most` of the `num_clients` clients of round `number`; `find` gives the clients (n,) at places (n,) of the round.

    Time and memory grow with `most` alone. The number of ranks has no part in the draw.
    """
    places = seeds.permuted(seed, "records", number, of=np.arange(min(most, num_clients)), among=max(1, num_clients))
    return find(places)
