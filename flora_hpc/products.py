"""Means over clients of B A, the products of low-rank adapters, and how far they are from the product of the means.

With weights w that add up to 1, starts A0 and B0 of a round, updates a and b of its clients, and means over clients:

    mean A = A0 + mean a          mean B = B0 + mean b
    mean B A  =  mean B mean A  +  C,          C = mean (b a) - mean b mean a

C is the covariance of the factors, the cross term. There are two ways to sum b a over clients: by `productsums`, exactly, client by
client, or by `stacks`, as one product of all factors. In both, the order of clients and the number of ranks change no bit. What
follows from the sums of a layer is computed on one rank, and all ranks get its bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from math import prod, sqrt

import numpy as np
import torch

from flora_hpc import lowrank, productsums, stacks
from flora_hpc.algorithms._algorithm import Combine
from flora_hpc.comm.communicator import AgreedError
from flora_hpc.comm.meter import Meter
from flora_hpc.exact import ExactSums
from flora_hpc.lowrank import Place
from flora_hpc.methods._method import Method
from flora_hpc.productsums import ProductSums
from flora_hpc.roles import Roles
from flora_hpc.stacks import Stacks

Sums = ProductSums | Stacks


def sums_of(method: Method, roles: Roles, num_clients: int) -> Sums:
    """What sums the products of a round with `num_clients` participants, in the way that takes fewer bytes."""
    layers = lowrank.places(method, roles)
    return Stacks(layers) if stacks_are_smaller(layers, num_clients) else ProductSums(layers)


def stacks_are_smaller(layers: Sequence[Place], num_clients: int) -> bool:
    """Whether the factors of all clients take fewer bytes than exact sums of their products; they always take fewer operations.

    For a layer (out, in): 4 num_clients rank (out + in) < 16 out in. The number of ranks has no say, since the way decides bits.
    """
    return stacks.num_bytes(layers, num_clients) < productsums.num_bytes(layers)


@dataclass(frozen=True)
class Combined:
    """What follows from the sums of all layers: the same on every rank."""

    factors: tuple[tuple[slice, torch.Tensor], ...]  # places in the adapter, and the numbers (n,) float32 that they get
    cross_term: float  # |C| / |mean B A| over all layers; NaN where mean B A is zero, or not all clients are in the sums
    rest: Mapping[str, torch.Tensor] = field(default_factory=dict)  # name of A -> mean B A - B A (out, in), to be merged

    def merged(self, before: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The matrices that are merged into the frozen weights, after those of `before`: name of A -> (out, in) float32."""
        return {name: before[name] + rest if name in before else rest for name, rest in self.rest.items()}

    def put(self, adapter: torch.Tensor) -> torch.Tensor:
        """The adapter (num_params,) with the new factors."""
        if not self.factors:
            return adapter
        adapter = adapter.clone()
        for numbers, values in self.factors:
            adapter[numbers] = values.to(adapter.device)
        return adapter


def combine(
    comm: Meter,
    combine: Combine,
    sums: Sums,
    rows: ExactSums,
    adapter: torch.Tensor,
    fresh: torch.Tensor | None = None,
) -> Combined:
    """Compute each layer on one rank, layers in turn to ranks, and send the bytes to all. All ranks call this together.

    `adapter` (num_params,) is that of the start of the round. `fresh` (num_params,) has new initial values, for an algorithm that
    takes such.

    Raises AgreedError, on every rank, where a layer's next factors are not finite.
    """
    with comm.phase("server"):
        mean_update = rows.precise_mean("update")
        local = [layer_bytes(combine, sums, number, adapter, mean_update, fresh) for number in owned(comm, len(sums.places))]
    gathered = comm.allgather(b"".join(local))
    with comm.phase("server"):
        cross, whole, factors, rest = 0.0, 0.0, [], {}
        streams = [BytesIO(data) for data in gathered]
        for number, place in enumerate(sums.places):
            stream, layer = streams[number % comm.size], place.layer
            squares = np.frombuffer(stream.read(16), np.float64)
            cross, whole = cross + float(squares[0]), whole + float(squares[1])
            for numbers in (place.a, place.b) if combine.replaces else ():
                factors.append((numbers, floats(stream, numbers.stop - numbers.start)))
            if combine.merged_ranks is not None:
                rest[layer.a] = floats(stream, prod(layer.shape)).view(layer.shape)
        if not all(torch.isfinite(values).all() for _, values in factors):
            raise AgreedError("algorithm.name: a layer's next factors are not finite; lower client.lr")
        is_whole = sums.total() in (None, rows.total("update"))
        return Combined(tuple(factors), sqrt(cross / whole) if whole > 0 and is_whole else np.nan, rest)


def floats(stream: BytesIO, count: int) -> torch.Tensor:
    """The next numbers (count,) float32."""
    return torch.from_numpy(np.frombuffer(stream.read(4 * count), np.float32).copy())


def owned(comm: Meter, num_layers: int) -> Sequence[int]:
    """The layers that this rank computes."""
    return range(comm.rank, num_layers, comm.size)


def layer_bytes(
    combine: Combine,
    sums: Sums,
    number: int,
    adapter: torch.Tensor,
    mean_update: torch.Tensor,
    fresh: torch.Tensor | None = None,
) -> bytes:
    """What follows from the sums of a layer, as bytes.

    The squares of the norms of C and of mean B A, scaled as in the forward pass; the next A and B, if there are new ones; and what
    they leave of mean B A, if it is merged.
    """
    with one_thread():
        means, cross = sums.means(number, adapter, mean_update)
        scale = sums.places[number].layer.scale
        norms = [float((scale * matrix).square_().sum()) for matrix in (cross, means.product)]
        parts = [np.array(norms).tobytes()]
        place = sums.places[number]
        if combine.replaces:
            if combine.factors is not None:
                a, b = (factor.float() for factor in combine.factors(means))
            else:
                assert fresh is not None
                a, b = fresh[place.a].view(means.a.shape), fresh[place.b].view(means.b.shape)
            parts += [factor.contiguous().numpy().tobytes() for factor in (a, b)]
            if combine.merged_ranks is not None:
                parts.append((means.product - b.double() @ a.double()).float().numpy().tobytes())
    return b"".join(parts)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, PyTorch computes on one thread: the bits of a decomposition may depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
