"""Clients with a few classes each: choose the classes of each client, and deal out the examples."""

from bisect import bisect_left

import numpy as np

from flora_hpc.data.images import Ints
from flora_hpc.data.partitioners._counts import cut, in_turn
from flora_hpc.data.partitioners._groups import Groups
from flora_hpc.errors import UserError

TRADES = 12  # one trade keeps two classes of a client together with probability 1/2 at most, 12 trades with 1/4,000


def check_classes(per_client: int, classes: Groups) -> None:
    """Raise UserError if clients shall hold more classes than there are."""
    if per_client > len(classes):
        raise UserError(
            f"partition.classes_per_client: {per_client} classes for each client, but the training images are of {len(classes)}; "
            f"lower it to {len(classes)} at most"
        )


def most_clients(places: Ints, per_client: int) -> int:
    """The largest number of clients that can hold `per_client` classes each, if `places[g]` clients may hold class g."""

    def too_many(num_clients: int) -> bool:
        return not enough(places, num_clients, per_client)

    return bisect_left(range(1, int(places.sum()) // per_client + 1), True, key=too_many)


def enough(places: Ints, num_clients: int, per_client: int) -> bool:
    """Whether `num_clients` can hold `per_client` different classes each, if `places[g]` clients may hold class g."""
    return int(np.minimum(places, num_clients).sum()) >= num_clients * per_client


def choose(places: Ints, num_clients: int, per_client: int, rng: np.random.Generator) -> Ints:
    """Draw the classes of each client (num_clients, per_client) int64; `enough` must hold.

    Every class has the same number of holders, to within one, unless `places` allows fewer. Example with 5 clients, 2 classes each,
    and 4 classes, drawn in the order 2 0 3 1:

        runs                    2 2 2 0 0 0 3 3 1 1     times: class 2 and 0 three, class 3 and 1 two
        reshaped (2, 5)         2 2 2 0 0               a column is a client; a run is 5 long at most,
                                0 3 3 1 1               so no client gets a class twice
        then `TRADES` rounds of `_trade` break the pattern of neighbours
    """
    times = cut(np.minimum(places, num_clients), num_clients * per_client, rng)
    classes = rng.permutation(len(places))
    runs = np.repeat(classes, times[classes])
    client_classes = rng.permutation(runs.reshape(per_client, num_clients).T)
    if 1 < per_client < len(places):
        for _ in range(TRADES):
            _trade(client_classes, rng)
    return client_classes


def _trade(client_classes: Ints, rng: np.random.Generator) -> None:
    """Random pairs of clients pool the classes that only one of them holds, and deal them out anew, in place.

    This is 'curveball' of Strona et al., "A fast and unbiased procedure to randomize ecological binary matrices with fixed row and
    column totals", Nature Communications 2014, for many pairs at once.
    """
    num_clients, per_client = client_classes.shape
    first, second = rng.permutation(num_clients)[: num_clients // 2 * 2].reshape(2, -1)
    pool = np.sort(np.concatenate([client_classes[first], client_classes[second]], axis=1), axis=1)
    is_shared = pool[:, 1:] == pool[:, :-1]
    order = rng.random(pool.shape, np.float32)
    order[:, :-1][is_shared] = -1  # each client keeps one of two equal classes
    order[:, 1:][is_shared] = 2
    pool = np.take_along_axis(pool, np.argsort(order, axis=1), axis=1)
    client_classes[first], client_classes[second] = pool[:, :per_client], pool[:, per_client:]


def deal_out(classes: Groups, client_classes: Ints, shots: int | None, rng: np.random.Generator) -> Ints:
    """The client (num_examples,) int64 of each example: every holder of a class gets `shots` of it; other examples get -1.

    Without `shots`, holders share all examples of a class, equally to within one. `client_classes` come from `choose`.
    """
    mixed = rng.permutation(client_classes.size)
    order = mixed[np.argsort(client_classes.ravel()[mixed], kind="stable")]
    holders = order // client_classes.shape[1]  # the holders of class 0, then of class 1, ...
    times = np.bincount(client_classes.ravel(), minlength=len(classes))  # holders of each class
    examples, places, class_of = classes.shuffled(rng), classes.places, np.repeat(np.arange(len(classes)), classes.sizes)
    is_dealt = places < times[class_of] * shots if shots is not None else np.ones(len(examples), bool)
    examples, places, class_of = examples[is_dealt], places[is_dealt], class_of[is_dealt]
    clients = np.full(len(classes.group_of), -1, np.int64)
    clients[examples] = holders[(np.cumsum(times) - times)[class_of] + places % times[class_of]]
    return clients


def draw(classes: Groups, per_client: int, num_drawn: int, rng: np.random.Generator) -> Ints:
    """Draw a client's examples (num_drawn,) int64 evenly from `per_client` random classes; from more if these have too few."""
    sizes, order = classes.sizes, rng.permutation(len(classes))
    chosen = order[:per_client]
    counts = np.zeros(len(classes), np.int64)
    if sizes[chosen].sum() >= num_drawn:
        counts[chosen] = cut(sizes[chosen], num_drawn, rng)
    else:
        counts[order] = in_turn(sizes[order], num_drawn)
    return classes.draw(counts, rng)
