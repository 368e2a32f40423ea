"""The mean over clients of b a, the products of the updates of both factors of each layer, by one product of stacked factors.

    rank 0     factors of clients 4, 1        layer 0 | layer 1 | layer 2 | ...
    rank 1     factors of clients 0, 3, 2     layer 0 | layer 1 | layer 2 | ...
                  | exchange: layer n of all clients goes to rank n % size, which puts it into the order of clients
    rank 0     clients 0 1 2 3 4 of layers 0, 2, ...        rank 1   the same of layers 1, 3, ...
                  | one float64 product for each layer:  sum w_i b_i a_i  =  [w_0 b_0 ... w_4 b_4] [a_0; ...; a_4]
    rank 0     means of layers 0, 2, ...                    rank 1   those of layers 1, 3, ...

Each product has all clients in one order, and is computed on one thread of one rank. So the order in which clients are added and
the number of ranks change no bit. Stacks take 4 bytes for each number of a client's factors. A rank has those of its clients, and
then those of all clients for its layers.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from flora_hpc import lowrank
from flora_hpc.algorithms._algorithm import LayerMeans
from flora_hpc.comm.meter import Meter
from flora_hpc.data.images import Ints
from flora_hpc.exact import Mask
from flora_hpc.lowrank import Place

ID_BYTES = 16  # of a client's number and weight

Floats = npt.NDArray[np.float32]


class Stacks:
    """The factors of the clients of a round in each of `layers`: at first of this rank's clients, then of this rank's layers."""

    def __init__(self, layers: Sequence[Place]) -> None:
        self.places = layers
        self._clients: list[Ints] = [np.zeros((2, 0), np.int64)]  # numbers and weights of each group
        self._rows: dict[int, list[Floats]] = {number: [] for number in lowrank.varying(layers)}  # A and B of each group
        self._weights = np.zeros(0, np.int64)  # of all clients, in their order
        self._stacks: dict[int, Floats] = {}  # of this rank's layers: A and B of all clients, in their order

    def add(self, clients: Ints, updates: torch.Tensor, weights: torch.Tensor, mask: Mask) -> None:
        """Add the factors in updates (num_clients, num_sent) with weights (num_clients,) int64, of `clients` in the `mask`."""
        self._clients.append(np.stack([clients, weights.numpy()])[:, mask])
        chosen = updates.float().cpu().numpy()[mask]
        for number, rows in self._rows.items():
            place = self.places[number]
            rows.append(np.concatenate([chosen[:, place.sent_a], chosen[:, place.sent_b]], 1))

    def collect(self, comm: Meter) -> None:
        """Send the factors of each layer to the rank that computes it, by layers in turn. All ranks call this together."""
        gathered = comm.allgather(np.concatenate(self._clients, 1).tobytes())
        clients, weights = np.concatenate([np.frombuffer(data, np.int64).reshape(2, -1) for data in gathered], 1)
        order = np.argsort(clients)
        self._weights = weights[order]
        for first in range(0, len(self.places), comm.size):
            parts = comm.exchange([self._sent(number) for number in range(first, first + comm.size)])
            number = first + comm.rank
            if number < len(self.places) and self.places[number].varies:
                with comm.phase("server"):
                    rows = np.frombuffer(b"".join(parts), np.float32).reshape(len(order), width(self.places[number]))
                    self._stacks[number] = rows[order]

    def _sent(self, number: int) -> bytes:
        """The factors of this rank's clients in a layer, which are forgotten here; none where there is no such layer."""
        return b"".join(rows.tobytes() for rows in self._rows.pop(number, []))

    def total(self) -> int | None:
        """The sum of weights of the clients in the stacks; None where no product has to be summed."""
        return int(self._weights.sum()) if lowrank.varying(self.places) else None

    def means(self, number: int, adapter: torch.Tensor, mean_update: torch.Tensor) -> tuple[LayerMeans, torch.Tensor]:
        """The means of layer `number`, one of this rank's, and its cross term C (out, in) float64.

        `adapter` (num_params,) is that of the start of the round, `mean_update` (num_sent,) float64. The mean of B A is the product
        of [mean B, w_i b_i ..., -mean b] and [mean A; a_i ...; mean a], which are in the result where they are narrower than it.
        """
        means = lowrank.factor_means(self.places[number], adapter, mean_update)
        if number not in self._stacks:
            return means.without_covariance()
        stacked_b, stacked_a = self._stacked(number)
        total = max(1, int(self._weights.sum()))
        cross = (stacked_b @ stacked_a).div_(total) - means.step_b @ means.step_a
        product, stacks = means.b @ means.a + cross, None
        if len(stacked_a) + 2 * len(means.a) < min(product.shape):
            left = torch.cat([means.b, stacked_b / total, -means.step_b], 1)
            stacks = left, torch.cat([means.a, stacked_a, means.step_a])
        return LayerMeans(product, means.a, means.b, stacks), cross

    def _stacked(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The updates of B times weights (out, num_clients * rank), and those of A (num_clients * rank, in), float64."""
        (out, inputs), rank = self.places[number].layer.shape, self.places[number].layer.rank
        rows, count = torch.from_numpy(self._stacks[number]), len(self._weights)
        a = rows[:, : rank * inputs].double().reshape(count * rank, inputs)
        b = rows[:, rank * inputs :].double().view(count, out, rank) * torch.from_numpy(self._weights)[:, None, None]
        return b.transpose(0, 1).reshape(out, count * rank), a


def width(place: Place) -> int:
    """How many numbers the factors of a layer have; 0 where no product of them has to be summed."""
    return place.layer.rank * sum(place.layer.shape) if place.varies else 0


def num_bytes(layers: Sequence[Place], num_clients: int) -> int:
    """Bytes of the factors of all clients and layers."""
    return 4 * num_clients * sum(map(width, layers))


class Sizes(NamedTuple):
    """Bytes of a round that a rank sends to the others and receives from them, at most, and has in memory."""

    sent: int
    received: int
    memory: int


def sizes(layers: Sequence[Place], num_clients: int, local: tuple[int, int], num_ranks: int) -> Sizes:
    """Forecast the stacks of a round with `num_clients`, of which a rank trains a number between the two `local` ones.

    In memory are factors of own clients or own layers, and for one layer three copies in float64, and four float64 matrices.
    """
    least, most = local
    of_rank = [sum(map(width, layers[rank::num_ranks])) for rank in range(num_ranks)]
    total, largest = sum(of_rank), max(layers, key=width).layer
    at_once = 24 * num_clients * largest.rank * sum(largest.shape) + 32 * prod(largest.shape)
    return Sizes(
        sent=most * (ID_BYTES + 4 * (total - min(of_rank))) if num_ranks > 1 else 0,
        received=(num_clients - least) * (ID_BYTES + 4 * max(of_rank)) if num_ranks > 1 else 0,
        memory=4 * max(most * total, num_clients * max(of_rank)) + at_once,
    )
