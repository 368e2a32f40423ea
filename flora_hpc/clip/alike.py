"""Compute once what is the same for many clients: in a round's first step, all clients hold the same adapter.

A shared tensor has one row for all clients (a stride of 0 along the clients). Results of shared tensors are shared, too; a result
that depends on a tensor of each client is not. In the backward pass, each client has its own gradient. Forwards and backwards, the
bits are the same as with one row per client.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

Compute = Callable[..., torch.Tensor]


def are_alike(*tensors: torch.Tensor) -> bool:
    """Whether tensors (num_clients or 1, ...) are the same for several clients."""
    several = False
    for x in tensors:  # called a hundred times a step, so any() and all() would be too slow
        if x.shape[0] > 1:
            if x.stride(0) != 0:
                return False
            several = True
    return several


def once(compute: Compute, *tensors: torch.Tensor) -> torch.Tensor:
    """compute(*tensors), on one row where all clients share it. The backward pass repeats it for each client: keep it cheap."""
    if not are_alike(*tensors):
        return compute(*tensors)
    result: torch.Tensor = _Once.apply(compute, *tensors)
    return result


def spread(compute: Compute, *tensors: torch.Tensor) -> torch.Tensor:
    """Apply `compute` to the first row of each tensor, and expand the result to all clients; no gradient.

    x[:1] of a shared tensor would keep its stride of 0. For this stride oneDNN has slow kernels only, and it would then take them
    for any tensor of the same shape.
    """
    result = compute(*(x[0][None] for x in tensors))
    return result.expand(max(map(len, tensors)), *result.shape[1:])


class _Once(torch.autograd.Function):
    """Forward pass for one client, backward pass for all."""

    @staticmethod
    def forward(ctx: Any, compute: Compute, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.compute = compute
        ctx.save_for_backward(*tensors)
        return spread(compute, *tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needs = ctx.needs_input_grad[1:]
        leaves = [x.detach().contiguous().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needs, strict=True)]
        with torch.enable_grad():
            result = ctx.compute(*(leaf.view_as(leaf) for leaf in leaves))  # torch's FLOP counter takes no leaf here
        by_leaf = iter(back(result, gradients[0], [leaf for leaf in leaves if leaf.requires_grad]))
        return None, *(next(by_leaf) if leaf.requires_grad else None for leaf in leaves)


def back(result: torch.Tensor, gradient: torch.Tensor, leaves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Gradients by `leaves` of a scalar whose gradient by `result` is `gradient`.

    torch.autograd.grad can do the same by grad_outputs, but then every rank imports sympy at its start.
    """
    with torch.enable_grad():
        scalar = _FixedGradient.apply(result, gradient)
    return torch.autograd.grad(scalar, leaves)


class _FixedGradient(torch.autograd.Function):
    """A scalar with a given gradient by a tensor."""

    @staticmethod
    def forward(ctx: Any, result: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gradient)
        return result.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.saved_tensors[0], None


def add(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left + right, both (num_clients or 1, ...)."""
    if not are_alike(left, right):
        return left + right
    result: torch.Tensor = _Sum.apply(left, right)
    return result


class _Sum(torch.autograd.Function):
    """A sum; its gradients need no second computation of it."""

    @staticmethod
    def forward(ctx: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        ctx.lengths = len(left), len(right)
        return spread(torch.add, left, right)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (gradient,) = gradients
        return tuple(gradient if length > 1 else gradient.sum(0, keepdim=True) for length in ctx.lengths)
