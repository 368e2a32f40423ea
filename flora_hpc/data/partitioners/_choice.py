"""NumPy's choice without replacement, for many clients at once.

For 32 numbers `Generator.choice` takes some four microseconds, mostly to begin. This module applies the same steps to the same
random words, in arrays: Floyd's algorithm ("A sample of brilliance", Communications of the ACM 1987), then a shuffle. Numbers below
a bound come from Lemire's method ("Fast random integer generation in an interval", ACM TOMACS 2019). In rare cases it draws anew;
NumPy itself then draws for that client. If the first client's result differs from NumPy's, NumPy draws for all clients.
"""

import numpy as np
import numpy.typing as npt

from flora_hpc.data.images import Ints
from flora_hpc.seeds import Streams, Words

MOST_DRAWN = 64  # each step compares with all earlier ones, where NumPy keeps a table; for more NumPy has another algorithm
WORD = np.uint64(2**32)
Bools = npt.NDArray[np.bool_]


def choose(streams: Streams, clients: Ints, num_items: int, num_drawn: int) -> Ints:
    """Draw `streams.of(client).choice(num_items, num_drawn, replace=False)` for each of `clients` (n,) -> (n, num_drawn) int64."""

    def numpy_choice(client: int) -> Ints:
        return streams.of(client).choice(num_items, num_drawn, replace=False)

    if len(clients) > 1 and num_drawn <= MOST_DRAWN and num_drawn < num_items < WORD:
        chosen, drawn_anew = _choose(streams.raw(clients, num_drawn), num_items, num_drawn)
        first = int(drawn_anew.argmin())
        if not drawn_anew[first] and np.array_equal(chosen[first], numpy_choice(int(clients[first]))):
            for place in np.flatnonzero(drawn_anew).tolist():
                chosen[place] = numpy_choice(int(clients[place]))
            return chosen
    return np.array([numpy_choice(client) for client in clients.tolist()], np.int64).reshape(len(clients), num_drawn)


def _choose(words: Words, num_items: int, num_drawn: int) -> tuple[Ints, Bools]:
    """Choices (n, num_drawn) int64 from `words` (n, num_drawn) uint64, and a mask (n,) of the clients that must draw anew."""
    most, places = np.arange(num_items - num_drawn, num_items), np.arange(num_drawn - 1, 0, -1)
    bounds = np.concatenate([most, places]).astype(np.uint64)[:, None] + np.uint64(1)
    halves = words.astype("<u8", copy=False).view("<u4")[:, : len(bounds)]  # the lower half of a word comes first
    products = np.ascontiguousarray(halves.T) * bounds
    numbers = (products >> np.uint64(32)).astype(np.int64)
    drawn_anew = (products % WORD < (WORD - bounds) % bounds).any(0)
    chosen = numbers[:num_drawn]
    for step in range(1, num_drawn):  # an item that was chosen before is replaced by the last one
        np.putmask(chosen[step], (chosen[:step] == chosen[step]).any(0), most[step])
    flat, partners = chosen.reshape(-1), numbers[num_drawn:] * len(words) + np.arange(len(words))
    for place, partner in zip(places.tolist(), partners, strict=True):  # swap
        items = flat[partner]
        flat[partner] = chosen[place]
        chosen[place] = items
    return np.ascontiguousarray(chosen.T), drawn_anew
