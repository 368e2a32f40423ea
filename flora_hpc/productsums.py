"""Exact sums over clients of b a, the products of the updates of both factors of each layer.

Each rank adds the products of its clients as fixed-point numbers, so the order of clients and the number of ranks change no bit.
The sums take 16 bytes for each number of a layer, whatever the number of clients, and a product of each client is computed.
"""

from collections.abc import Sequence
from math import prod

import torch

from flora_hpc import lowrank
from flora_hpc.algorithms._algorithm import LayerMeans
from flora_hpc.comm.meter import Meter
from flora_hpc.data.images import Ints
from flora_hpc.exact import ExactSum, Mask
from flora_hpc.lowrank import Place

BLOCK = 2**22  # numbers of products, of all clients together, that are float64 at once
CACHED_BLOCK = 2**16  # on a processor: products and their sums stay in the cache (measured: 3 times as fast as 2**20)


def num_bytes(layers: Sequence[Place]) -> int:
    """Bytes of the exact sums of the products of all layers."""
    return sum(8 * (2 * prod(place.layer.shape) + 1) for place in layers if place.varies)


class ProductSums:
    """Exact sums over clients of the products b a of each of `layers`."""

    def __init__(self, layers: Sequence[Place]) -> None:
        self.places = layers
        self._sums = {number: ExactSum(prod(layers[number].layer.shape)) for number in lowrank.varying(layers)}

    def add(self, clients: Ints, updates: torch.Tensor, weights: torch.Tensor, mask: Mask) -> None:
        """Add the products of updates (num_clients, num_sent) with weights (num_clients,) int64, of clients in the `mask`."""
        for number, total in self._sums.items():
            place = self.places[number]
            size = prod(place.layer.shape)
            step = max(1, (CACHED_BLOCK if updates.device.type == "cpu" else BLOCK) // size)
            for start in range(0, len(updates), step):
                some = slice(start, start + step)
                rows = products(*lowrank.factors(place, updates[some])).view(-1, size)
                total.add(rows, weights[some], fits=mask[some])

    def collect(self, comm: Meter) -> None:
        """Add the sums of all ranks up, layer by layer. All ranks call this together."""
        for total in self._sums.values():
            comm.allreduce(total.buffer)

    def total(self) -> int | None:
        """The sum of weights of the clients in these sums; None where no product has to be summed."""
        return min((total.total for total in self._sums.values()), default=None)

    def means(self, number: int, adapter: torch.Tensor, mean_update: torch.Tensor) -> tuple[LayerMeans, torch.Tensor]:
        """The means of layer `number`, and its cross term C (out, in) float64.

        `adapter` (num_params,) is that of the start of the round, `mean_update` (num_sent,) float64.
        """
        means = lowrank.factor_means(self.places[number], adapter, mean_update)
        if number not in self._sums:
            return means.without_covariance()
        mean_product = self._sums[number].mean(torch.float64).view(self.places[number].layer.shape)
        cross = mean_product - means.step_b @ means.step_a
        return LayerMeans(means.b @ means.a + cross, means.a, means.b), cross


def products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The products b a of each client, (num_clients, out, in), of a (num_clients, rank, in) and b (num_clients, out, rank).

    The ranks are added one after the other: the bits of a client's product depend on nothing but its factors, which a matrix
    product of many clients does not promise.
    """
    result = b[:, :, :1] * a[:, :1]
    for rank in range(1, a.shape[1]):
        result += b[:, :, rank : rank + 1] * a[:, rank : rank + 1]
    return result
