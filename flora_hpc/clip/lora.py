"""Low-rank updates of Linear layers, another one for each client."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from flora_hpc.clip.alike import are_alike, spread
from flora_hpc.clip.steady import multiply, of_all

Drop = Callable[[torch.Tensor], torch.Tensor]


class Lora(NamedTuple):
    """y = W x + b + alpha * up (down (drop x)), for each client. The scale is alpha itself, as in the FLoRA paper's code."""

    down: torch.Tensor  # (num_clients, rank, in)
    up: torch.Tensor  # (num_clients, out, rank)
    alpha: float
    drop: Drop | None = None  # (num_clients or 1, length, in) -> (num_clients, length, in)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """What is added to W x + b: (num_clients or 1, length, in) -> (num_clients, length, out)."""
        if self.drop is not None:
            x = self.drop(x)
        y: torch.Tensor = _LowRank.apply(x, self.down, self.up, self.alpha)
        return y


class _LowRank(torch.autograd.Function):
    """alpha * up (down x), as one step of autograd's: its own bookkeeping would take longer than the products."""

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
        of_inner = multiply(gradient, up).mul_(ctx.alpha)
        of_x = of_all(multiply(of_inner, down), x.shape[0]) if ctx.needs_input_grad[0] else None
        of_down = of_all(multiply(of_inner.transpose(1, 2), x), down.shape[0])
        return of_x, of_down, of_all(multiply(gradient.transpose(1, 2), mixed), up.shape[0]), None


def dropout(probability: float, seeds: Sequence[int]) -> Drop:
    """Zero numbers with this probability and scale the rest up; each client draws from a seed of its own, whoever is beside it."""

    def drop(x: torch.Tensor) -> torch.Tensor:
        sources = [torch.Generator().manual_seed(seed) for seed in seeds]
        kept = torch.stack([torch.rand(x.shape[1:], generator=source) >= probability for source in sources])
        return x * kept.to(x.device, x.dtype) / (1 - probability)

    return drop


@contextmanager
def attached(model: nn.Module, adapters: Mapping[str, Lora], num_clients: int) -> Iterator[None]:
    """For a while, the Linear layers of `model` that `adapters` names add their updates.

    The model then computes for `num_clients` clients at once, folded into the batch: the first batch // num_clients rows are
    those of the first client, and so on. Any model will do whose layers keep the batch first and do not mix its rows.
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
