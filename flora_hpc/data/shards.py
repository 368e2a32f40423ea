"""Which examples each client holds: a true partition, or a population whose clients draw their own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from pydantic import Field

from flora_hpc import plugins, seeds
from flora_hpc.data.images import Ints
from flora_hpc.errors import UserError
from flora_hpc.plugins import BaseOptions


class PartitionOptions(BaseOptions):
    """What every partitioner lets one choose."""

    num_clients: int = Field(10, ge=1, le=10**12, description="registered clients")
    examples_per_client: int | None = Field(
        None, ge=1, description="each client draws its own n examples (clients may overlap); without it, examples are split"
    )


class Partitioner(NamedTuple):
    """A rule for a given set of labels, in its two forms.

    `split(num_clients, rng)` gives the client (num_examples,) int64 of each example, 0..num_clients-1.
    `draw(num_drawn, rng)` gives one client's examples (num_drawn,) int64, none twice.
    """

    split: Callable[[int, np.random.Generator], Ints]
    draw: Callable[[int, np.random.Generator], Ints]


class Shards(Protocol):
    """Client -> examples."""

    @property
    def num_clients(self) -> int:
        """How many clients are registered."""

    def sizes(self, clients: Ints) -> Ints:
        """Number of examples of each of `clients` (n,) int64 -> (n,) int64."""

    def examples(self, client: int) -> Ints:
        """Indices (num_examples,) int64 of one client's training examples."""


@dataclass(frozen=True)
class Partition:
    """Every example belongs to one client: `order[starts[i] : starts[i + 1]]` are those of client i."""

    order: Ints
    starts: Ints

    @property
    def num_clients(self) -> int:
        return len(self.starts) - 1

    def sizes(self, clients: Ints) -> Ints:
        return self.starts[clients + 1] - self.starts[clients]

    def examples(self, client: int) -> Ints:
        return self.order[self.starts[client] : self.starts[client + 1]]


@dataclass(frozen=True)
class Population:
    """Every client draws its own examples when asked, from the seed: nothing is kept, however many clients there are."""

    num_clients: int
    examples_per_client: int
    seed: int
    draw: Callable[[int, np.random.Generator], Ints]

    def sizes(self, clients: Ints) -> Ints:
        return np.full(len(clients), self.examples_per_client, np.int64)

    def examples(self, client: int) -> Ints:
        return self.draw(self.examples_per_client, seeds.generator(self.seed, "population", client))


def make(options: PartitionOptions, labels: Ints, seed: int) -> Shards:
    """Shards of the training examples with these labels (num_examples,). Raises UserError when there are too few."""
    partitioner: Partitioner = plugins.member("partitioners", options.name).build(options, labels)
    wanted = options.examples_per_client
    if wanted is not None:
        if wanted > len(labels):
            raise UserError(
                f"partition.examples_per_client: {wanted} examples for each client, but there are only {len(labels)}; lower it"
            )
        return Population(options.num_clients, wanted, seed, partitioner.draw)
    if options.num_clients > len(labels):
        raise UserError(
            f"partition.num_clients: {options.num_clients} clients for {len(labels)} training examples leaves some without any; "
            "lower it, or set partition.examples_per_client to let clients draw overlapping examples"
        )
    rng = seeds.generator(seed, "partition")
    clients = partitioner.split(options.num_clients, rng)
    mixed = rng.permutation(len(labels))  # so that a client's examples are in random order
    order = mixed[np.argsort(clients[mixed], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(clients, minlength=options.num_clients))])
    return Partition(order, starts)
