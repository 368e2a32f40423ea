"""Clients differ in their mix of classes, by a Dirichlet distribution: the smaller beta, the more they differ.

Split: the examples of each class are dealt out in shares p ~ Dir(beta, ..., beta) over the clients (Yurochkin et al., "Bayesian
Nonparametric Federated Learning of Neural Networks", ICML 2019). With K clients a share has mean 1/K and variance
(1/K) (1 - 1/K) / (K beta + 1). Then clients with fewer than `min_examples` get examples from the largest clients.

Population: the shares of C classes in a client are q ~ Dir(C beta s), where s are the classes' shares in the data (Hsu, Qi and
Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019, with alpha = C beta).
For classes of equal size this is Dir(beta, ..., beta); the mean is always s. If a class has too few examples, others replace them.
"""

import numpy as np
from pydantic import Field

from flora_hpc.data.holdings import Partitioner, PartitionOptions
from flora_hpc.data.images import Images, Ints
from flora_hpc.data.partitioners._counts import check_least, deal, raised
from flora_hpc.data.partitioners._groups import group


class Options(PartitionOptions):
    """The degree of difference between clients."""

    beta: float = Field(0.1, ge=1e-6, le=1e6, description="concentration: 0.1 is strongly skewed, 100 is nearly IID")
    min_examples: int = Field(1, ge=1, description="when examples are split: the least that a client gets")


def build(options: Options, images: Images) -> Partitioner:
    classes = group(images.labels)
    sizes = classes.sizes
    concentration = options.beta * len(classes) * sizes / len(images)

    def split(num_clients: int, rng: np.random.Generator) -> Ints:
        check_least(options.min_examples, num_clients, len(images))
        clients = np.empty(len(images), np.int64)
        for members in np.split(classes.shuffled(rng), classes.starts[1:-1]):
            clients[members] = deal(rng.dirichlet(np.full(num_clients, options.beta)), len(members), rng)
        _ensure_minimum(options.min_examples, clients, num_clients, rng)
        return clients

    def draw(num_drawn: int, rng: np.random.Generator) -> Ints:
        counts = rng.multinomial(num_drawn, rng.dirichlet(concentration))
        if (counts > sizes).any():  # examples that a class lacks are drawn from the rest of the others
            surplus = int((counts - sizes).clip(min=0).sum())
            counts = counts.clip(max=sizes)
            counts += rng.multivariate_hypergeometric(sizes - counts, surplus)
        return classes.draw(counts, rng)

    return Partitioner(split, draw)


def _ensure_minimum(least: int, clients: Ints, num_clients: int, rng: np.random.Generator) -> None:
    """Move random examples from the largest clients to clients with fewer than `least`, in place."""
    counts = np.bincount(clients, minlength=num_clients)
    change = raised(counts, least, rng) - counts
    mixed = rng.permutation(len(clients))
    order = mixed[np.argsort(clients[mixed], kind="stable")]
    owners = clients[order]
    moved = order[np.arange(len(order)) - (np.cumsum(counts) - counts)[owners] < -change[owners]]
    clients[rng.permutation(moved)] = np.repeat(np.arange(num_clients), change.clip(min=0))
