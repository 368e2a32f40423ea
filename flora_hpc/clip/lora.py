"""Low-rank updates of Linear layers, a different one for each client."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from flora_hpc.clip.alike import are_alike, once, spread
from flora_hpc.clip.steady import multiply, product, sum_if_shared

SHARED, PRIVATE = ".lora_", ".private_"  # in names of tensors: a layer's adapter, and a second one beside it
MIDDLE = ".lora_R"  # end of the name of a square matrix between A and B
Drop = Callable[[torch.Tensor], torch.Tensor]


class Lora(NamedTuple):
    """y = W x + b + alpha * up (down (drop x)), for each client. The scale is alpha itself, as in the FLoRA paper's code."""

    down: torch.Tensor  # (num_clients, rank, in)
    up: torch.Tensor  # (num_clients, out, rank)
    alpha: float
    drop: Drop | None = None  # (num_clients or 1, length, in) -> (num_clients, length, in)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the term added to W x + b: (num_clients or 1, length, in) -> (num_clients, length, out)."""
        if self.drop is not None:
            x = self.drop(x)
        y: torch.Tensor = _LowRank.apply(x, self.down, self.up, self.alpha)
        return y


class _LowRank(torch.autograd.Function):
    """alpha * up (down x) as one autograd function: autograd's bookkeeping of two would take longer than the products."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, alpha: float) -> torch.Tensor:
        def inner(x: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
            return multiply(x, down.transpose(1, 2)).mul_(alpha)

        alike = are_alike(x, down, up)
        mixed = spread(inner, x, down) if alike else inner(x, down)
        ctx.save_for_backward(x, down, up, mixed)
        ctx.alpha = alpha
        return spread(multiply, mixed, up.transpose(1, 2)) if alike else multiply(mixed, up.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,), (x, down, up, mixed) = gradients, ctx.saved_tensors
        gradient_inner = multiply(gradient, up).mul_(ctx.alpha)
        gradient_x = sum_if_shared(multiply(gradient_inner, down), x.shape[0]) if ctx.needs_input_grad[0] else None
        gradient_down = sum_if_shared(multiply(gradient_inner.transpose(1, 2), x), down.shape[0])
        return gradient_x, gradient_down, sum_if_shared(multiply(gradient.transpose(1, 2), mixed), up.shape[0]), None


def dropout(probability: float, seeds: Sequence[int]) -> Drop:
    """Zero numbers with this probability and scale the rest up. Each client draws from its own seed, whatever its group."""

    def drop(x: torch.Tensor) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        kept = torch.stack([torch.rand(x.shape[1:], generator=generator) >= probability for generator in generators])
        return x * kept.to(x.device, x.dtype) / (1 - probability)

    return drop


def join(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """One A (..., rank, in) and one B (..., out, rank) for each layer, which compute what all its tensors compute.

    Two adapters become one, B A x + B2 A2 x = [B, B2] [A; A2] x, so that both take one product instead of two. A matrix R between
    A and B becomes part of B, B R A x = (B R) A x. Tensors of other names stay as they are.
    """
    joined = {name: tensor for name, tensor in tensors.items() if PRIVATE not in name and not name.endswith(MIDDLE)}
    for name, tensor in tensors.items():
        if name.endswith(MIDDLE):
            up = f"{name.removesuffix(MIDDLE)}{SHARED}B"
            joined[up] = _times(joined[up], tensor)
        elif PRIVATE in name:
            shared = name.replace(PRIVATE, SHARED)
            joined[shared] = once(_below if name.endswith("_A") else _beside, joined[shared], tensor)
    return joined


def _below(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.cat((first, second), -2)


def _beside(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.cat((first, second), -1)


def _times(up: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
    """B R, of each client or, without a client axis, of one."""
    return product(up, middle) if up.dim() == 3 else product(up[None], middle[None])[0]


def separate(joined: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Tensors of these `shapes`, for one client, of which `join` makes the same again.

    Two adapters are views of the first and last rows or columns. A matrix R is part of B, so it is the identity here.
    """

    def place(name: str, shape: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(slice(-size, None) if PRIVATE in name else slice(size) for size in shape)

    return {
        name: torch.eye(len(joined[f"{name.removesuffix(MIDDLE)}{SHARED}A"]))
        if name.endswith(MIDDLE)
        else joined[name.replace(PRIVATE, SHARED)][place(name, shape)]
        for name, shape in shapes.items()
    }


@contextmanager
def attached(model: nn.Module, adapters: Mapping[str, Lora], num_clients: int) -> Iterator[None]:
    """Inside, the Linear layers of `model` that `adapters` names add their low-rank updates.

    The model then computes for `num_clients` clients at once, folded into the batch: the first batch // num_clients rows belong
    to the first client, and so on. The layers of `model` must keep the batch first and must not mix its rows.
    """

    def hook(lora: Lora) -> Callable[[nn.Module, tuple[Any, ...], torch.Tensor], torch.Tensor]:
        def add(layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            x = inputs[0].reshape(num_clients, -1, inputs[0].shape[-1])
            return output + lora(x).view(output.shape)

        return add

    handles = [model.get_submodule(path).register_forward_hook(hook(lora)) for path, lora in adapters.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
