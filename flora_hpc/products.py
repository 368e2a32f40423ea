"""Means over clients of B A, the products of low-rank adapters, and how far they are from the product of the means.

With weights w that add up to 1, starts A0 and B0 of a round, updates a and b of its clients, and means over clients:

    mean A = A0 + mean a          mean B = B0 + mean b
    mean B A  =  mean B mean A  +  C,          C = mean (b a) - mean b mean a

C is the covariance of the factors, the cross term. Each rank adds the products b a of its clients exactly, layer by layer, so the
order of clients and the number of ranks change no bit. What follows from the sums of a layer is computed on one rank, and all ranks
get its bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import accumulate, pairwise
from math import prod, sqrt
from typing import NamedTuple

import numpy as np
import torch

from flora_hpc.algorithms._algorithm import Combine, LayerMeans
from flora_hpc.clip.steady import multiply
from flora_hpc.comm.communicator import AgreedError
from flora_hpc.comm.meter import Meter
from flora_hpc.exact import LIMIT, ExactSum, ExactSums, Mask
from flora_hpc.methods._method import Layer, Method
from flora_hpc.roles import Columns, Roles

BLOCK = 2**22  # numbers of products, of all clients together, that are float64 at once
CACHED_BLOCK = 2**16  # on a processor: products and their sums stay in the cache (measured: 3 times as fast as 2**20)


class Place(NamedTuple):
    """A layer, and the places of its factors in the adapter and among the numbers that clients send; None for a factor not sent."""

    layer: Layer
    a: slice
    b: slice
    sent_a: slice | None
    sent_b: slice | None

    @property
    def varies(self) -> bool:
        """Whether clients send both factors, so that the mean of products differs from the product of means."""
        return self.sent_a is not None and self.sent_b is not None


def places(method: Method, roles: Roles) -> tuple[Place, ...]:
    """The places of the method's layers of which no factor is private."""
    slices = slices_of(method)
    whole = [
        Place(layer, slices[layer.a], slices[layer.b], place_in(roles.sent, slices[layer.a]), place_in(roles.sent, slices[layer.b]))
        for layer in method.layers
    ]
    return tuple(place for place in whole if place_in(roles.own, place.a) is None and place_in(roles.own, place.b) is None)


def slices_of(method: Method) -> dict[str, slice]:
    """The numbers of the adapter that each tensor has, by its name."""
    ends = list(accumulate(map(prod, method.shapes.values()), initial=0))
    return {name: slice(*part) for name, part in zip(method.shapes, pairwise(ends), strict=True)}


def place_in(columns: Columns, numbers: slice) -> slice | None:
    """The place of consecutive `numbers` of the adapter among `columns` of it; None where they are not among them."""
    before = 0
    for part in columns.slices:
        if part.start <= numbers.start and numbers.stop <= part.stop:
            first = before + numbers.start - part.start
            return slice(first, first + numbers.stop - numbers.start)
        before += part.stop - part.start
    return None


def sum_bytes(method: Method, roles: Roles) -> int:
    """Bytes of the exact sums of the products of all layers."""
    return sum(8 * (2 * prod(place.layer.shape) + 1) for place in places(method, roles) if place.varies)


class ProductSums:
    """Exact sums over clients of b a, the products of the updates of both factors of each layer."""

    def __init__(self, method: Method, roles: Roles) -> None:
        self.places = places(method, roles)
        self._sums = {number: ExactSum(prod(place.layer.shape)) for number, place in enumerate(self.places) if place.varies}

    def fits(self, updates: torch.Tensor, weights: torch.Tensor) -> Mask:
        """Whether each client's products are small enough to be added, by a bound: (num_clients,) bool; False for NaN."""
        fits = np.ones(len(updates), bool)
        for number in self._sums:
            a, b = self._factors(self.places[number], updates)
            bound = (b.abs().amax(1) * a.abs().amax(2)).sum(1)
            fits &= (bound.cpu() * weights < LIMIT).numpy()
        return fits

    def add(self, updates: torch.Tensor, weights: torch.Tensor, mask: Mask) -> None:
        """Add the products of updates (num_clients, num_sent) with weights (num_clients,) int64, of clients in the `mask`."""
        for number, total in self._sums.items():
            place = self.places[number]
            size = prod(place.layer.shape)
            step = max(1, (CACHED_BLOCK if updates.device.type == "cpu" else BLOCK) // size)
            for start in range(0, len(updates), step):
                some = slice(start, start + step)
                rows = products(*self._factors(place, updates[some])).view(-1, size)
                total.add(rows, weights[some], fits=mask[some])

    def _factors(self, place: Place, updates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The updates of A (num_clients, rank, in) and of B (num_clients, out, rank), float64."""
        (out, width), rank = place.layer.shape, place.layer.rank
        assert place.sent_a is not None
        assert place.sent_b is not None
        return updates[:, place.sent_a].double().view(-1, rank, width), updates[:, place.sent_b].double().view(-1, out, rank)

    def allreduce(self, comm: Meter) -> None:
        """Add the sums of all ranks up, layer by layer."""
        for total in self._sums.values():
            comm.allreduce(total.buffer)

    def total(self) -> int | None:
        """The sum of weights of the clients in these sums; None where no product has to be summed."""
        return min((total.total for total in self._sums.values()), default=None)

    def means(self, number: int, adapter: torch.Tensor, mean_update: torch.Tensor) -> tuple[LayerMeans, torch.Tensor]:
        """The means of layer `number`, and its cross term C (out, in) float64.

        `adapter` (num_params,) is that of the start of the round, `mean_update` (num_sent,) float64.
        """
        place = self.places[number]
        (out, width), rank = place.layer.shape, place.layer.rank

        def mean(numbers: slice, sent: slice | None, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
            step = torch.zeros(shape, dtype=torch.float64) if sent is None else mean_update[sent].view(shape)
            return adapter[numbers].cpu().double().view(shape) + step, step

        a, step_a = mean(place.a, place.sent_a, (rank, width))
        b, step_b = mean(place.b, place.sent_b, (out, rank))
        cross = torch.zeros(out, width, dtype=torch.float64)
        if number in self._sums:
            cross = self._sums[number].mean(torch.float64).view(out, width) - step_b @ step_a
        return LayerMeans(b @ a + cross, a, b), cross


def products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The products b a of each client, (num_clients, out, in), of a (num_clients, rank, in) and b (num_clients, out, rank).

    The ranks are added one after the other: the bits of a client's product depend on nothing but its factors, which a matrix
    product of many clients does not promise.
    """
    result = b[:, :, :1] * a[:, :1]
    for rank in range(1, a.shape[1]):
        result += b[:, :, rank : rank + 1] * a[:, rank : rank + 1]
    return result


def norms(method: Method, adapters: torch.Tensor) -> torch.Tensor:
    """The norm of B A of its layer for each number of `adapters` (num_clients, num_params): the same shape, float32; else 1.

    |B A|^2 is the sum of the entries of B^T B times those of A A^T, which are small.
    """
    result = torch.ones_like(adapters)
    slices = slices_of(method)
    for layer in method.layers:
        (out, width), rank = layer.shape, layer.rank
        a = adapters[:, slices[layer.a]].double().view(-1, rank, width)
        b = adapters[:, slices[layer.b]].double().view(-1, out, rank)
        squares = multiply(b.transpose(1, 2), b) * multiply(a, a.transpose(1, 2))
        norm = squares.flatten(1).sum(1, keepdim=True).clamp_(min=0).sqrt_().float()
        result[:, slices[layer.a]], result[:, slices[layer.b]] = norm, norm
    return result


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
    sums: ProductSums,
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
    sums: ProductSums,
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
