"""Low-rank updates of Linear layers, a different one for each client."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from flora_hpc.clip.alike import are_alike, once, spread
from flora_hpc.clip.steady import multiply, sum_if_shared

SHARED, PRIVATE = ".lora_", ".private_"  # in names of tensors: a layer's adapter, and a second one beside it
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
    """Join a layer's two adapters (..., rank, in) and (..., out, rank) to one: B A x + B2 A2 x = [B, B2] [A; A2] x.

    So both take one product instead of two. Tensors of other names stay as they are.
    """
    joined = {name: tensor for name, tensor in tensors.items() if PRIVATE not in name}
    for name, tensor in tensors.items():
        if PRIVATE in name:
            shared = name.replace(PRIVATE, SHARED)
            joined[shared] = once(_below if name.endswith("_A") else _beside, joined[shared], tensor)
    return joined


def _below(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.cat((first, second), -2)


def _beside(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.cat((first, second), -1)


def separate(joined: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The inverse of `join` for one client: tensors of these `shapes`, as views of the first and last rows or columns."""

    def place(name: str, shape: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(slice(-size, None) if PRIVATE in name else slice(size) for size in shape)

    return {name: joined[name.replace(PRIVATE, SHARED)][place(name, shape)] for name, shape in shapes.items()}


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
