"""Clients that drop ranks: the tail that may go, its size, the penalty that keeps it small, and what a client then holds.

rank of a client      0 ............ left .... r - 1        left = floor(share r), at least the least rank
                                     '---- tail ----'       in all layers, the last rows of A and columns of B

The size of a tail is the sum over layers of |B_tail| |A_tail|, Frobenius norms. A client whose tail is smaller after its local
training than before drops it, and has `left` ranks from then on.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch

from flora_hpc import lowrank
from flora_hpc.algorithms._algorithm import Gradient, LocalStep, Pruning
from flora_hpc.clip.steady import row_sums
from flora_hpc.data.images import Ints
from flora_hpc.methods._method import Method

MEMORY = "pruned_ranks"  # what a client remembers: one number
ROUNDING = 1e-9  # 0.7 times 10 is 7 ranks, also where float64 has a little less


def ranks_left(pruning: Pruning, ranks: Ints) -> Ints:
    """The ranks (n,) int64 that clients of `ranks` (n,) have left if they drop their tails; the same where there is no tail."""
    shares = [math.floor(pruning.share * rank + ROUNDING) for rank in ranks.tolist()]
    return np.minimum(ranks, np.maximum(pruning.least_rank, np.array(shares, np.int64)))


def tail_sizes(method: Method, params: torch.Tensor, tail: torch.Tensor) -> torch.Tensor:
    """The size of each client's tail (num_clients,) float64, of `params` (num_clients, num_params), where `tail` is True.

    The bits of a client's size do not depend on the other clients.
    """
    sizes = torch.zeros(len(params), dtype=torch.float64, device=params.device)
    for _, _, norm_a, norm_b in _norms(method, params, tail):
        sizes += norm_a * norm_b
    return sizes


def with_penalty(gradient: Gradient | None, method: Method, tail: torch.Tensor, weight: float) -> Gradient:
    """Change gradients by `gradient`, if there is one, and add the gradient of `weight` times the size of the tail.

    `tail` is (num_clients, num_params) bool. A factor of norm zero adds nothing to its own gradient.
    """

    def penalized(numbers: torch.Tensor, step: LocalStep) -> torch.Tensor:
        numbers = numbers if gradient is None else gradient(numbers, step)
        params, of_clients = step.params, tail[: len(step.params)]
        ratios = torch.zeros_like(params)
        for a, b, norm_a, norm_b in _norms(method, params, of_clients):
            ratios[:, a] = torch.where(norm_a > 0, norm_b / norm_a, 0.0)[:, None].to(params.dtype)
            ratios[:, b] = torch.where(norm_b > 0, norm_a / norm_b, 0.0)[:, None].to(params.dtype)
        return numbers + torch.where(of_clients, weight * ratios * params, 0.0)

    return penalized


def _norms(method: Method, params: torch.Tensor, tail: torch.Tensor) -> Iterator[tuple[slice, slice, torch.Tensor, torch.Tensor]]:
    """For each layer: the places of A and B among `params`, and the norms of their tails, (num_clients,) float64 each."""
    slices = lowrank.slices_of(method)
    for layer in method.layers:
        a, b = slices[layer.a], slices[layer.b]
        norm_a, norm_b = (row_sums(torch.where(tail[:, part], params[:, part], 0.0).double().square()).sqrt() for part in (a, b))
        yield a, b, norm_a, norm_b


def holding(method: Method, clients: Ints, memory: Mapping[str, torch.Tensor]) -> Method:
    """The method of these `clients` (n,) alone, whose portions lack the ranks that they dropped, by their `memory`.

    The same method where clients drop no ranks.
    """
    if MEMORY not in memory:
        return method
    order, num_pruned = np.argsort(clients), memory[MEMORY][:, 0].cpu().numpy().astype(np.int64)

    def ranks(some: Ints) -> Ints:
        return ranks_of(method, some) - num_pruned[order[np.searchsorted(clients, some, sorter=order)]]

    def mask(some: Ints) -> torch.Tensor:
        return mask_of(method, ranks(some))

    def sizes(some: Ints) -> Ints:
        numbers: Ints = mask(some).sum(1).numpy()
        return numbers

    assert method.portions is not None
    return replace(method, portions=method.portions._replace(mask=mask, sizes=sizes, ranks=ranks))


def ranks_of(method: Method, clients: Ints) -> Ints:
    """The ranks (n,) int64 of `clients` (n,)."""
    assert method.portions is not None
    assert method.portions.ranks is not None
    return method.portions.ranks(clients)


def mask_of(method: Method, ranks: Ints) -> torch.Tensor:
    """What clients of `ranks` (n,) hold, (n, num_params) bool."""
    assert method.portions is not None
    assert method.portions.of_ranks is not None
    return method.portions.of_ranks(ranks)
