"""The images that each client holds: a partition of all images, or a population whose clients draw their examples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from flora_hpc import plugins, seeds
from flora_hpc.data.images import Images, Ints, Origin
from flora_hpc.errors import UserError
from flora_hpc.plugins import BaseOptions

Floats = npt.NDArray[np.float64]
MAX_TABLE = 2**23  # examples of all clients of a population that are drawn once and not in every round: 32 MiB


class PartitionOptions(BaseOptions):
    """Options of every partitioner."""

    num_clients: int = Field(10, ge=1, le=10**12, description="registered clients")
    examples_per_client: int | None = Field(
        None,
        ge=1,
        description="each client draws its own n (quantity: in the mean) and may overlap; else examples are split",
    )


class Partitioner(NamedTuple):
    """A rule for a given set of training images: `split` makes a partition, `draw` makes a population.

    `split(num_clients, rng)` gives the client (num_examples,) int64 of each example, 0..num_clients-1, or -1 for no client. Every
    client gets an example. `split` raises UserError where there are too few examples.
    `draw(num_drawn, rng)` gives the examples (num_drawn,) int64 of one client, none twice.
    `size(mean, uniforms)` gives the numbers of examples (n,) int64 that clients of a population draw, 1 or more, from a random
    number of each, `uniforms` (n,) from 0 to 1, which is left out; without it all draw `mean`.
    `draw_many(num_drawn, streams, clients)` gives, faster, the examples of `draw` for each of `clients` (n,): (n, num_drawn) int64.
    `num_clients` is set where the rule decides the number of clients. `order` (num_examples,) int64 is set where the rule decides
    the order in which clients hold their examples; otherwise it is random. `warnings` are sentences for the user. `columns` say
    something of each client: name -> a text for each, (num_clients,), or an empty one where its images differ.
    """

    split: Callable[[int, np.random.Generator], Ints]
    draw: Callable[[int, np.random.Generator], Ints]
    size: Callable[[int, Floats], Ints] | None = None
    draw_many: Callable[[int, seeds.Streams, Ints], Ints] | None = None
    num_clients: int | None = None
    order: Ints | None = None
    warnings: tuple[str, ...] = ()
    columns: Mapping[str, Sequence[str]] = MappingProxyType({})


class Holdings(Protocol):
    """Client -> rows of its images."""

    @property
    def num_clients(self) -> int:
        """Number of registered clients."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that a user must read before round 0."""

    @property
    def columns(self) -> Mapping[str, Sequence[str]]:
        """What a file of clients says of each client; see `Partitioner`."""

    @property
    def largest(self) -> int:
        """Upper bound of the number of examples of a client."""

    @property
    def common_size(self) -> int | None:
        """The number of examples of every client; None where clients differ."""

    def sizes(self, clients: Ints) -> Ints:
        """Number of examples of each of `clients` (n,) int64 -> (n,) int64."""

    def examples(self, client: int) -> Ints:
        """Rows (num_examples,) int64 of the dataset that one client trains on."""

    def examples_of(self, clients: Ints) -> tuple[Ints, Ints]:
        """The examples of `clients` (n,), one client after the other, as a copy; and the number of examples of each (n,) int64."""


@dataclass(frozen=True)
class Partition:
    """Each image belongs to one client at most: `order[starts[i] : starts[i + 1]]` are the images of client i."""

    order: Ints
    starts: Ints
    warnings: tuple[str, ...] = ()
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def num_clients(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def largest(self) -> int:
        return int(np.diff(self.starts).max(initial=0))

    @cached_property
    def common_size(self) -> int | None:
        return self.largest if (np.diff(self.starts) == self.largest).all() else None

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
    """Every client draws its examples from the seed: a large population draws anew in each round, so its memory does not grow."""

    num_clients: int
    examples_per_client: int
    seed: int
    partitioner: Partitioner
    rows: Ints  # rows of the dataset from which clients draw

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.partitioner.warnings

    @property
    def columns(self) -> Mapping[str, Sequence[str]]:
        return self.partitioner.columns

    @property
    def largest(self) -> int:
        return self.examples_per_client if self.partitioner.size is None else len(self.rows)

    @property
    def common_size(self) -> int | None:
        return self.examples_per_client if self.partitioner.size is None else None

    def sizes(self, clients: Ints) -> Ints:
        if self.partitioner.size is None:
            return np.full(len(clients), self.examples_per_client, np.int64)
        uniforms = seeds.uniforms(self.seed, "population size", of=clients)
        return np.minimum(self.partitioner.size(self.examples_per_client, uniforms), len(self.rows))

    def examples(self, client: int) -> Ints:
        size = int(self.sizes(np.array([client]))[0])
        return self.rows[self.partitioner.draw(size, self._streams.of(client))]

    def examples_of(self, clients: Ints) -> tuple[Ints, Ints]:
        sizes = self.sizes(clients)
        if self.common_size is None or self.num_clients * self.common_size > MAX_TABLE:
            return self.rows[self._draw(clients, sizes)], sizes
        drawn, mask = self._table
        new = ~mask[clients]
        if new.any():
            drawn[clients[new]] = self._draw(clients[new], sizes[new]).reshape(-1, self.common_size)
            mask[clients[new]] = True
        return self.rows[drawn[clients].reshape(-1)], sizes

    def _draw(self, clients: Ints, sizes: Ints) -> Ints:
        """Draw the examples of `clients` (n,), which are `sizes` (n,) many, one client after the other, as places in `rows`."""
        if self.partitioner.draw_many is not None and self.common_size is not None:
            return self.partitioner.draw_many(self.common_size, self._streams, clients).reshape(-1)
        draw, streams, pairs = self.partitioner.draw, self._streams, zip(clients.tolist(), sizes.tolist(), strict=True)
        parts = [draw(size, streams.of(client)) for client, size in pairs]
        return np.concatenate([*parts, np.zeros(0, np.int64)])

    @cached_property
    def _table(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """What clients drew in earlier rounds (num_clients, examples_per_client), and the mask (num_clients,) of these clients."""
        return np.zeros((self.num_clients, self.examples_per_client), np.uint32), np.zeros(self.num_clients, bool)

    @cached_property
    def _streams(self) -> seeds.Streams:
        return seeds.Streams(self.seed, "population")


def make(options: PartitionOptions, images: Images, rows: Ints, seed: int, test: Ints | None = None) -> Holdings:
    """Give the training images `rows` (num_examples,) to clients. Raises UserError when there are too few images.

    `test` (num_test,) int64 are the rows of test images, none by default.
    """
    origin = Origin(images, rows, np.zeros(0, np.int64) if test is None else test)
    training = replace(images.take(rows), origin=origin)
    partitioner = plugins.build("partitioners", options, Partitioner, training)
    num_drawn = options.examples_per_client
    if num_drawn is not None:
        if num_drawn > len(rows):
            raise UserError(
                f"partition.examples_per_client: {num_drawn} examples for each client, but there are only {len(rows)}; lower it"
            )
        return Population(options.num_clients, num_drawn, seed, partitioner, rows)
    num_clients = options.num_clients if partitioner.num_clients is None else partitioner.num_clients
    if num_clients > len(rows):
        raise UserError(
            f"partition.num_clients: {num_clients} clients for {len(rows)} training examples leaves some without any; "
            "lower it, or set partition.examples_per_client to let clients draw overlapping examples"
        )
    rng = seeds.generator(seed, "partition")
    clients = _checked(partitioner.split(num_clients, rng), len(rows), num_clients, options.name)
    mixed = rng.permutation(len(rows)) if partitioner.order is None else partitioner.order  # the order of a client's examples
    order = mixed[np.argsort(clients[mixed], kind="stable")]
    counts = np.bincount(clients + 1, minlength=num_clients + 1)
    num_unassigned = counts[0]  # examples of no client (-1) come first
    return Partition(rows[order[num_unassigned:]], np.cumsum(counts) - num_unassigned, partitioner.warnings, partitioner.columns)


def _checked(clients: Ints, num_examples: int, num_clients: int, name: str) -> Ints:
    """The client of each example, as a partitioner returned it. Raises UserError where it is no split: users write such, too."""
    rule = f"{num_examples:,} whole numbers from -1 (nobody) to {num_clients - 1:,}, each client's at least once"
    what = f"partition.name: {name}: the result of its split must be {rule}"
    if not isinstance(clients, np.ndarray) or clients.shape != (num_examples,) or clients.dtype.kind not in "iu":
        description = f"{clients.dtype} {clients.shape}" if isinstance(clients, np.ndarray) else type(clients).__name__
        raise UserError(f"{what}, and is {description}; mend the partitioner")
    wrong = clients[(clients < -1) | (clients >= num_clients)]
    if len(wrong):
        raise UserError(f"{what}, and has client {wrong[0]}; mend the partitioner")
    empty = np.flatnonzero(np.bincount(clients[clients >= 0], minlength=num_clients) == 0)
    if len(empty):
        raise UserError(f"{what}, and lacks client {empty[0]}; mend the partitioner")
    return clients.astype(np.int64)


def for_server(rows: Ints, num_images: int, seed: int) -> tuple[Ints, Ints]:
    """Draw `num_images` of the training images `rows` (num_examples,) for the server: these, and the rest for the clients.

    Both are in the order of `rows`. Raises UserError where no client would get an image.
    """
    if num_images >= max(1, len(rows)):
        raise UserError(
            f"algorithm.server_images: {num_images:,} of {len(rows):,} training images for the server leave none for the clients; "
            "lower it (combine.server_images, where the section combine has the rule)"
        )
    if not num_images:
        return rows[:0], rows
    mask = np.zeros(len(rows), bool)
    mask[seeds.generator(seed, "server images").permutation(len(rows))[:num_images]] = True
    return rows[mask], rows[~mask]
