"""What is the same for many clients is computed once: in a round's first step, all of them hold the same adapter.

Such a tensor has one row, which all clients share (a stride of 0 along the clients). What comes of it is of that kind, too, up to
the first thing that is a client's own. Backwards, each client has a gradient of its own. Both ways the bits are those that each
client would get with a row of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

Compute = Callable[..., torch.Tensor]


def are_alike(*tensors: torch.Tensor) -> bool:
    """Whether tensors (num_clients or 1, ...) are the same for several clients."""
    several = False
    for x in tensors:  # asked a hundred times a step, so not by any() and all()
        if x.shape[0] > 1:
            if x.stride(0) != 0:
                return False
            several = True
    return several


def once(compute: Compute, *tensors: torch.Tensor) -> torch.Tensor:
    """compute(*tensors), of one row where all clients share it. Backwards it is computed again for each, so it should be cheap."""
    if not are_alike(*tensors):
        return compute(*tensors)
    result: torch.Tensor = _Once.apply(compute, *tensors)
    return result


def spread(compute: Compute, *tensors: torch.Tensor) -> torch.Tensor:
    """compute of the first row of each tensor, as a row of all clients; no gradient.

    x[:1] of such a tensor would keep its stride of 0, for which oneDNN has slow ways only; and it would take these, from then on,
    for any tensor of the same shape.
    """
    result = compute(*(x[0][None] for x in tensors))
    return result.expand(max(map(len, tensors)), *result.shape[1:])


class _Once(torch.autograd.Function):
    """Forwards for one client, backwards for all."""

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
        found = iter(back(result, gradients[0], [leaf for leaf in leaves if leaf.requires_grad]))
        return None, *(next(found) if leaf.requires_grad else None for leaf in leaves)


def back(result: torch.Tensor, gradient: torch.Tensor, leaves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The gradients by `leaves` of what has this `gradient` by `result`.

    torch.autograd.grad does this, too, with its grad_outputs; but then it imports sympy, at the start of every rank.
    """
    with torch.enable_grad():
        scalar = _Given.apply(result, gradient)
    return torch.autograd.grad(scalar, leaves)


class _Given(torch.autograd.Function):
    """A number whose gradient by a tensor is given."""

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
    """A sum whose gradients need no second look at it."""

    @staticmethod
    def forward(ctx: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        ctx.lengths = len(left), len(right)
        return spread(torch.add, left, right)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (gradient,) = gradients
        return tuple(gradient if length > 1 else gradient.sum(0, keepdim=True) for length in ctx.lengths)
