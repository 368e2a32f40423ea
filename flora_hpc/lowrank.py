"""Low-rank layers of a method: where their factors lie among the trained numbers, their means and their norms."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import NamedTuple

import numpy as np
import torch

from flora_hpc.algorithms._algorithm import LayerMeans
from flora_hpc.clip.steady import multiply, row_sums
from flora_hpc.exact import LIMIT, Mask
from flora_hpc.methods._method import Layer, Method
from flora_hpc.roles import Columns, Roles


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


def varying(layers: Sequence[Place]) -> list[int]:
    """The numbers of the layers of which clients send both factors."""
    return [number for number, place in enumerate(layers) if place.varies]


def factors(place: Place, updates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The updates of A (num_clients, rank, in) and of B (num_clients, out, rank), float64, of updates (num_clients, num_sent)."""
    (out, width), rank = place.layer.shape, place.layer.rank
    assert place.sent_a is not None
    assert place.sent_b is not None
    return updates[:, place.sent_a].double().view(-1, rank, width), updates[:, place.sent_b].double().view(-1, out, rank)


def fits(layers: Sequence[Place], updates: torch.Tensor, weights: torch.Tensor) -> Mask:
    """Whether each client's products b a are small enough to be added, by a bound: (num_clients,) bool; False for NaN.

    Updates are (num_clients, num_sent), weights (num_clients,) int64.
    """
    mask = np.ones(len(updates), bool)
    for number in varying(layers):
        a, b = factors(layers[number], updates)
        bound = (b.abs().amax(1) * a.abs().amax(2)).sum(1)
        mask &= (bound.cpu() * weights < LIMIT).numpy()
    return mask


class FactorMeans(NamedTuple):
    """The means over clients of a layer's factors, and of their updates, float64."""

    a: torch.Tensor  # (rank, in), with the start of the round
    b: torch.Tensor  # (out, rank), with the start of the round
    step_a: torch.Tensor
    step_b: torch.Tensor

    def without_covariance(self) -> tuple[LayerMeans, torch.Tensor]:
        """The means of a layer of which clients share one factor, and its cross term (out, in) float64, which is zero."""
        product = self.b @ self.a
        stacks = (self.b, self.a) if len(self.a) < min(product.shape) else None
        return LayerMeans(product, self.a, self.b, stacks), torch.zeros_like(product)


def factor_means(place: Place, adapter: torch.Tensor, mean_update: torch.Tensor) -> FactorMeans:
    """The means of a layer's factors.

    `adapter` (num_params,) is that of the start of the round, `mean_update` (num_sent,) float64.
    """
    (out, width), rank = place.layer.shape, place.layer.rank

    def mean(numbers: slice, sent: slice | None, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        step = torch.zeros(shape, dtype=torch.float64) if sent is None else mean_update[sent].view(shape)
        return adapter[numbers].cpu().double().view(shape) + step, step

    a, step_a = mean(place.a, place.sent_a, (rank, width))
    b, step_b = mean(place.b, place.sent_b, (out, rank))
    return FactorMeans(a, b, step_a, step_b)


def important(layers: Sequence[Place], adapter: torch.Tensor, updates: torch.Tensor, share: float) -> tuple[torch.Tensor, int]:
    """The numbers of each client's most important ranks, (num_clients, num_sent) bool, and how many ranks these are.

    Of each layer, clients send one factor. Rank i of an update b changes B A by b[:, i] A[i], whose norm |b[:, i]| |A[i]| is its
    importance; the same with a and B. Of all ranks of all layers, those of the largest importance are chosen, a `share` of them;
    of equal ones, the first. Numbers outside of layers always belong to the mask.

    `adapter` (num_params,) is that of the start of the round, `updates` (num_clients, num_sent).
    """
    scores = []
    for place in layers:
        (out, width), rank = place.layer.shape, place.layer.rank
        if place.sent_a is not None:
            rows, other = updates[:, place.sent_a].reshape(-1, width), adapter[place.b].view(out, rank).T
        else:
            rows = updates[:, place.sent_b].reshape(-1, out, rank).transpose(1, 2).reshape(-1, out)
            other = adapter[place.a].view(rank, width)
        lengths = [row_sums(vectors.double().square()).sqrt() for vectors in (rows, other)]
        scores.append(lengths[0].view(-1, rank) * lengths[1])
    every = torch.cat(scores, 1)
    count = num_sent_ranks(layers, share)
    first = every.sort(dim=1, descending=True, stable=True).indices[:, :count]
    chosen = torch.zeros_like(every, dtype=torch.bool).scatter_(1, first, True)
    mask = torch.ones_like(updates, dtype=torch.bool)
    for place, part in zip(layers, torch.split(chosen, [place.layer.rank for place in layers], 1), strict=True):
        (out, width), rank = place.layer.shape, place.layer.rank
        if place.sent_a is not None:
            mask[:, place.sent_a] = part[:, :, None].expand(-1, rank, width).flatten(1)
        else:
            mask[:, place.sent_b] = part[:, None, :].expand(-1, out, rank).flatten(1)
    return mask, count


def num_sent_ranks(layers: Sequence[Place], share: float) -> int:
    """How many ranks of all layers a client sends where it sends a `share` of them."""
    return max(1, round(share * sum(place.layer.rank for place in layers)))


def most_sent_bytes(layers: Sequence[Place], num_sent: int, share: float) -> int:
    """Bytes that a client sends at most, of `num_sent` numbers: those of its ranks, and 4 bytes for the place of each rank."""
    count = num_sent_ranks(layers, share)
    widths = [place.layer.shape[1 if place.sent_a is not None else 0] for place in layers for _ in range(place.layer.rank)]
    return 4 * (num_sent - sum(widths) + sum(sorted(widths, reverse=True)[:count]) + count)


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
