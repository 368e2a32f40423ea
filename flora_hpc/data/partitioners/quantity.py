"""Clients differ in their number of examples, by a Dirichlet distribution: the smaller beta, the more. All have one class mix.

Split: client k of K gets the share p_k of all examples, p ~ Dir(beta, ..., beta), drawn at random (Li, Diao, Chen and He,
"Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022). A share has mean 1/K and variance
(1/K) (1 - 1/K) / (K beta + 1). Then clients with fewer than `min_examples` get examples from the largest clients.

Population: a client draws n = m g / beta examples, g ~ Gamma(beta), where m is `examples_per_client`; n has mean m and variance
m^2 / beta. For very many clients this is the distribution of the split, where shares are Gamma variables divided by their sum. n is
at least `min_examples` and at most the number of examples. A table of the probabilities of all n gives the n of a random number.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from pydantic import Field

from flora_hpc.data.holdings import Floats, Partitioner, PartitionOptions
from flora_hpc.data.images import Images, Ints
from flora_hpc.data.partitioners._counts import check_least, deal, raised

CELLS = 2**14  # eight and more for each number of a usual table


class Options(PartitionOptions):
    """The degree of difference between sizes."""

    beta: float = Field(0.5, ge=1e-6, le=1e6, description="concentration: 0.1 is strongly skewed, 100 is nearly equal sizes")
    min_examples: int = Field(1, ge=1, description="the least that a client gets")


def build(options: Options, images: Images) -> Partitioner:
    def split(num_clients: int, rng: np.random.Generator) -> Ints:
        check_least(options.min_examples, num_clients, len(images))
        owners = deal(rng.dirichlet(np.full(num_clients, options.beta)), len(images), rng)
        counts = raised(np.bincount(owners, minlength=num_clients), options.min_examples, rng)
        return rng.permutation(np.repeat(np.arange(num_clients), counts))

    def draw(num_drawn: int, rng: np.random.Generator) -> Ints:
        return rng.choice(len(images), num_drawn, replace=False)

    @cache
    def up_to(mean: int) -> "Table":
        """The probability of at most n examples, for n from `min_examples` up to one less than there are."""
        import torch  # takes seconds, and a check of the options does not need it

        halves = torch.arange(options.min_examples, len(images), dtype=torch.float64) + 0.5  # n is rounded
        beta = torch.tensor(options.beta, dtype=torch.float64)
        return Table.of(np.asarray(torch.special.gammainc(beta, halves * options.beta / mean).numpy()))

    def size(mean: int, uniforms: Floats) -> Ints:
        return options.min_examples + up_to(mean).places(uniforms)

    return Partitioner(split, draw, size)


class Table(NamedTuple):
    """Ascending numbers from 0 to 1, and a guide to them: 0 to 1 in CELLS cells, most of which have no number inside."""

    numbers: Floats
    up_to: Ints  # (CELLS + 1,): how many numbers are at most the lower edge of a cell, and at most 1

    @classmethod
    def of(cls, numbers: Floats) -> "Table":
        return cls(numbers, np.searchsorted(numbers, np.arange(CELLS + 1) / CELLS, "right"))

    def places(self, uniforms: Floats) -> Ints:
        """How many numbers are at most each of `uniforms` (n,), from 0 to 1, which is left out: (n,) int64.

        A search by halves, in a quarter of the time where there are a million of them.
        """
        cells = (uniforms * CELLS).astype(np.int64)
        places = self.up_to.take(cells)
        mixed = np.flatnonzero(places != self.up_to.take(cells + 1))
        places[mixed] = np.searchsorted(self.numbers, uniforms[mixed], "right")
        return places
