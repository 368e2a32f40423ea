"""Clients that hold a few classes each: who holds which, and what each gets of them."""

from bisect import bisect_left

import numpy as np

from flora_hpc.data.images import Ints
from flora_hpc.data.partitioners._counts import cut, in_turn
from flora_hpc.data.partitioners._groups import Groups
from flora_hpc.errors import UserError

TRADES = 12  # after one trade two classes of a client are together still in half of all cases at most, so 12 leave 1 in 4,000


def check_classes(per_client: int, classes: Groups) -> None:
    """Refuse more classes for each client than there are."""
    if per_client > len(classes):
        raise UserError(
            f"partition.classes_per_client: {per_client} classes for each client, but the training images are of {len(classes)}; "
            f"lower it to {len(classes)} at most"
        )


def most_clients(places: Ints, per_client: int) -> int:
    """The largest number of clients that can hold `per_client` classes each, `places[g]` of them class g."""

    def too_many(num_clients: int) -> bool:
        return not enough(places, num_clients, per_client)

    return bisect_left(range(1, int(places.sum()) // per_client + 1), True, key=too_many)


def enough(places: Ints, num_clients: int, per_client: int) -> bool:
    """Whether so many clients can hold `per_client` different classes each, `places[g]` of them class g."""
    return int(np.minimum(places, num_clients).sum()) >= num_clients * per_client


def choose(places: Ints, num_clients: int, per_client: int, rng: np.random.Generator) -> Ints:
    """The classes of each client (num_clients, per_client) int64, drawn at random; needs `enough` places.

    Every class is held by as many clients as every other, to within one, unless `places` allows less.
    """
    times = cut(np.minimum(places, num_clients), num_clients * per_client, rng)
    classes = rng.permutation(len(places))
    runs = np.repeat(classes, times[classes])  # a class's run is num_clients long at most, so that it meets no client twice
    held = rng.permutation(runs.reshape(per_client, num_clients).T)
    if 1 < per_client < len(places):
        for _ in range(TRADES):
            _trade(held, rng)
    return held


def _trade(held: Ints, rng: np.random.Generator) -> None:
    """Random pairs of clients put their classes together and deal out anew those that they do not share, in place.

    It is the 'curveball' of Strona et al., "A fast and unbiased procedure to randomize ecological binary matrices with fixed row
    and column totals", Nature Communications 2014, for many pairs at once.
    """
    num_clients, per_client = held.shape
    one, other = rng.permutation(num_clients)[: num_clients // 2 * 2].reshape(2, -1)
    pool = np.sort(np.concatenate([held[one], held[other]], axis=1), axis=1)
    twice = pool[:, 1:] == pool[:, :-1]
    order = rng.random(pool.shape, np.float32)
    order[:, :-1][twice] = -1  # the first of two goes to one client, the second to the other
    order[:, 1:][twice] = 2
    pool = np.take_along_axis(pool, np.argsort(order, axis=1), axis=1)
    held[one], held[other] = pool[:, :per_client], pool[:, per_client:]


def deal_out(classes: Groups, held: Ints, shots: int | None, rng: np.random.Generator) -> Ints:
    """The client (num_examples,) int64 of each example, when the holders of a class get `shots` each and the rest is nobody's.

    Without `shots` they get all of it, in numbers equal to within one. `held` is that of `choose`.
    """
    mixed = rng.permutation(held.size)
    holders = mixed[np.argsort(held.ravel()[mixed], kind="stable")] // held.shape[1]  # of class 0, then of class 1, ...
    times = np.bincount(held.ravel(), minlength=len(classes))
    order, places, of = classes.shuffled(rng), classes.places, np.repeat(np.arange(len(classes)), classes.sizes)
    dealt = places < times[of] * shots if shots is not None else np.ones(len(order), bool)
    order, places, of = order[dealt], places[dealt], of[dealt]
    clients = np.full(len(classes.of), -1, np.int64)
    clients[order] = holders[(np.cumsum(times) - times)[of] + places % times[of]]
    return clients


def draw(classes: Groups, per_client: int, num_drawn: int, rng: np.random.Generator) -> Ints:
    """One client's examples (num_drawn,) int64: evenly of `per_client` random classes, and of more where these have too few."""
    sizes, order = classes.sizes, rng.permutation(len(classes))
    chosen = order[:per_client]
    counts = np.zeros(len(classes), np.int64)
    if sizes[chosen].sum() >= num_drawn:
        counts[chosen] = cut(sizes[chosen], num_drawn, rng)
    else:
        counts[order] = in_turn(sizes[order], num_drawn)
    return classes.draw(counts, rng)
