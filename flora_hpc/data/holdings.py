"""Which images each client holds: a true partition, or a population whose clients draw their own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from pydantic import Field

from flora_hpc import plugins, seeds
from flora_hpc.data.images import Images, Ints, Origin
from flora_hpc.errors import UserError
from flora_hpc.plugins import BaseOptions


class PartitionOptions(BaseOptions):
    """What every partitioner lets one choose."""

    num_clients: int = Field(10, ge=1, le=10**12, description="registered clients")
    examples_per_client: int | None = Field(
        None,
        ge=1,
        description="each client draws its own n (quantity: in the mean) and may overlap; else examples are split",
    )


class Partitioner(NamedTuple):
    """A rule for a given set of training images, in its two forms.

    `split(num_clients, rng)` gives the client (num_examples,) int64 of each example, 0..num_clients-1, or -1 for nobody's; every
    client gets an example. It raises UserError where the examples do not suffice.
    `draw(num_drawn, rng)` gives one client's examples (num_drawn,) int64, none twice.
    `size(mean, rng)` gives the number of examples that one client of a population draws, 1 or more; all draw `mean` without it.
    `draw_many(num_drawn, streams, clients)` gives, faster, what `draw` gives for each of `clients` (n,): (n, num_drawn) int64.
    `num_clients` is the number of clients where the rule itself decides it. `order` (num_examples,) int64 is the order in which
    clients hold their examples where the rule decides it; it is random otherwise. `warnings` are sentences for the user.
    """

    split: Callable[[int, np.random.Generator], Ints]
    draw: Callable[[int, np.random.Generator], Ints]
    size: Callable[[int, np.random.Generator], int] | None = None
    draw_many: Callable[[int, seeds.Streams, Ints], Ints] | None = None
    num_clients: int | None = None
    order: Ints | None = None
    warnings: tuple[str, ...] = ()


class Holdings(Protocol):
    """Client -> images."""

    @property
    def num_clients(self) -> int:
        """How many clients are registered."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that a user must read before round 0."""

    @property
    def largest(self) -> int:
        """No client has more examples."""

    def sizes(self, clients: Ints) -> Ints:
        """Number of examples of each of `clients` (n,) int64 -> (n,) int64."""

    def examples(self, client: int) -> Ints:
        """Rows (num_examples,) int64 of the dataset that one client trains on."""

    def examples_of(self, clients: Ints) -> tuple[Ints, Ints]:
        """The examples of `clients` (n,), one client after the other, a copy; and how many each has (n,) int64."""


@dataclass(frozen=True)
class Partition:
    """No image belongs to two clients: `order[starts[i] : starts[i + 1]]` are those of client i."""

    order: Ints
    starts: Ints
    warnings: tuple[str, ...] = ()

    @property
    def num_clients(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def largest(self) -> int:
        return int(np.diff(self.starts).max(initial=0))

    def sizes(self, clients: Ints) -> Ints:
        return self.starts[clients + 1] - self.starts[clients]

    def examples(self, client: int) -> Ints:
        return self.order[self.starts[client] : self.starts[client + 1]]

    def examples_of(self, clients: Ints) -> tuple[Ints, Ints]:
        sizes = self.sizes(clients)
        before = np.cumsum(sizes) - sizes
        return self.order[np.arange(sizes.sum()) + np.repeat(self.starts[clients] - before, sizes)], sizes


@dataclass(frozen=True)
class Population:
    """Every client draws its own examples when asked, from the seed: nothing is kept, however many clients there are."""

    num_clients: int
    examples_per_client: int
    seed: int
    partitioner: Partitioner
    rows: Ints  # of the dataset, among which clients draw

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.partitioner.warnings

    @property
    def largest(self) -> int:
        return self.examples_per_client if self.partitioner.size is None else len(self.rows)

    def sizes(self, clients: Ints) -> Ints:
        if self.partitioner.size is None:
            return np.full(len(clients), self.examples_per_client, np.int64)
        return np.array([self._size(client) for client in clients.tolist()], np.int64)

    def examples(self, client: int) -> Ints:
        return self.rows[self.partitioner.draw(self._size(client), self._streams.of(client))]

    def examples_of(self, clients: Ints) -> tuple[Ints, Ints]:
        sizes = self.sizes(clients)
        if self.partitioner.draw_many is not None and self.partitioner.size is None:
            drawn = self.partitioner.draw_many(self.examples_per_client, self._streams, clients).reshape(-1)
            return self.rows[drawn], sizes
        draw, streams, pairs = self.partitioner.draw, self._streams, zip(clients.tolist(), sizes.tolist(), strict=True)
        parts = [draw(size, streams.of(client)) for client, size in pairs]
        return self.rows[np.concatenate([*parts, np.zeros(0, np.int64)])], sizes

    @cached_property
    def _streams(self) -> seeds.Streams:
        return seeds.Streams(self.seed, "population")

    @cached_property
    def _size_streams(self) -> seeds.Streams:
        return seeds.Streams(self.seed, "population size")

    def _size(self, client: int) -> int:
        if self.partitioner.size is None:
            return self.examples_per_client
        size = self.partitioner.size(self.examples_per_client, self._size_streams.of(client))
        return min(size, len(self.rows))


def make(options: PartitionOptions, images: Images, rows: Ints, seed: int, test: Ints | None = None) -> Holdings:
    """Holdings of the images `rows` (num_examples,), which clients may train on. Raises UserError when there are too few.

    `test` (num_test,) int64 are the rows of test images, none by default.
    """
    origin = Origin(images, rows, np.zeros(0, np.int64) if test is None else test)
    training = replace(images.take(rows), origin=origin)
    partitioner: Partitioner = plugins.member("partitioners", options.name).build(options, training)
    wanted = options.examples_per_client
    if wanted is not None:
        if wanted > len(rows):
            raise UserError(
                f"partition.examples_per_client: {wanted} examples for each client, but there are only {len(rows)}; lower it"
            )
        return Population(options.num_clients, wanted, seed, partitioner, rows)
    num_clients = options.num_clients if partitioner.num_clients is None else partitioner.num_clients
    if num_clients > len(rows):
        raise UserError(
            f"partition.num_clients: {num_clients} clients for {len(rows)} training examples leaves some without any; "
            "lower it, or set partition.examples_per_client to let clients draw overlapping examples"
        )
    rng = seeds.generator(seed, "partition")
    clients = partitioner.split(num_clients, rng)
    mixed = rng.permutation(len(rows)) if partitioner.order is None else partitioner.order  # a client's examples are in this order
    order = mixed[np.argsort(clients[mixed], kind="stable")]
    counts = np.bincount(clients + 1, minlength=num_clients + 1)
    nobodys = counts[0]  # they come first
    return Partition(rows[order[nobodys:]], np.cumsum(counts) - nobodys, partitioner.warnings)
