"""Clients differ in their mix of classes, by a Dirichlet distribution: the smaller beta, the more they differ.

Split: the examples of each class are dealt out in shares p ~ Dir(beta, ..., beta) over the clients (Yurochkin et al., "Bayesian
Nonparametric Federated Learning of Neural Networks", ICML 2019), then every client without an example gets one from the
largest. Population: a client's classes have shares q ~ Dir(beta, ..., beta) weighted by class size (Hsu, Qi and Brown,
"Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019).
"""

import numpy as np
from pydantic import Field

from flora_hpc.data.images import Ints
from flora_hpc.data.shards import Partitioner, PartitionOptions


class Options(PartitionOptions):
    """How much clients differ."""

    beta: float = Field(0.1, gt=0, le=1e6, description="concentration: 0.1 is strongly skewed, 100 is nearly IID")


def build(options: Options, labels: Ints) -> Partitioner:
    sizes = np.bincount(labels)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])

    def split(num_clients: int, rng: np.random.Generator) -> Ints:
        clients = np.empty(len(labels), np.int64)
        for members in by_class:
            shares = rng.dirichlet(np.full(num_clients, options.beta))
            cuts = np.floor(np.cumsum(shares)[:-1] * len(members) + 0.5)
            clients[rng.permutation(members)] = np.searchsorted(cuts, np.arange(len(members)), side="right")
        _give_everyone_one(clients, num_clients)
        return clients

    def draw(num_drawn: int, rng: np.random.Generator) -> Ints:
        shares = rng.dirichlet(np.full(len(sizes), options.beta)) * sizes
        if shares.sum() == 0:  # the drawn classes are empty in this dataset
            shares = sizes.astype(float)
        counts = rng.multinomial(num_drawn, shares / shares.sum())
        surplus = int((counts - sizes).clip(min=0).sum())  # more than a class has: taken from what the others have left
        counts = counts.clip(max=sizes)
        counts += rng.multivariate_hypergeometric(sizes - counts, surplus)
        parts = [rng.choice(members, count, replace=False) for members, count in zip(by_class, counts, strict=True)]
        return rng.permutation(np.concatenate(parts))

    return Partitioner(split, draw)


def _give_everyone_one(clients: Ints, num_clients: int) -> None:
    """Move single examples from the largest clients to those without any, in place. Needs an example per client."""
    counts = np.bincount(clients, minlength=num_clients)
    for empty in np.flatnonzero(counts == 0):
        largest = int(counts.argmax())
        clients[np.flatnonzero(clients == largest)[0]] = empty
        counts[largest] -= 1
        counts[empty] += 1
