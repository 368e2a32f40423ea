"""What a client does with its gradients, for many clients at once: Adam, AdamW and SGD, each as torch.optim has it.

All work in place on plain tensors, gradients included: with all weights of a CLIP in training, copies are what memory goes into.
What an optimizer remembers is a tuple of tensors, one row for each client, so that a part of the clients can take a step.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from flora_hpc.config import ClientConfig
from flora_hpc.data.images import Ints

State = tuple[torch.Tensor, ...]  # (num_clients, num_params) or (num_clients, 1) each, float32


class Kept(NamedTuple):
    """What the optimizers of a group remember from one round to the next."""

    clients: Ints  # (num_clients,)
    state: State


class Optimizer(NamedTuple):
    """A rule: what it remembers at first, and a step of it.

    `init(params, config)` makes the state of params (num_clients, num_params) float32; `step(params, gradient, state, config)`
    moves params and state on, and leaves nothing of use in `gradient`.
    """

    init: Callable[[torch.Tensor, ClientConfig], State]
    step: Callable[[torch.Tensor, torch.Tensor, State, ClientConfig], None]


def forget(state: State, clients: torch.Tensor) -> None:
    """Remember nothing of `clients` (num_clients,) bool, in place: numbers that are not finite would stay so for ever."""
    for part in state:
        part.masked_fill_(clients[:, None].to(part.device), 0.0)


def first(state: State, num_clients: int) -> State:
    """The part of the first `num_clients` clients; what happens to it happens to `state`."""
    return tuple(part[:num_clients] for part in state)


def _moments(params: torch.Tensor, config: ClientConfig) -> State:
    """Both moments, and the steps that each client has taken.

    Not by zeros_like: for a tensor on device 'meta', by which `groupsize` asks for sizes, PyTorch would load sympy.
    """
    return params.new_zeros(params.shape), params.new_zeros(params.shape), params.new_zeros(len(params), 1)


def _adam(params: torch.Tensor, gradient: torch.Tensor, state: State, config: ClientConfig) -> None:
    """Adam (Kingma and Ba, ICLR 2015), the L2 penalty added to the gradient."""
    gradient.add_(params, alpha=config.weight_decay)
    _adapt(params, gradient, state, config)


def _adamw(params: torch.Tensor, gradient: torch.Tensor, state: State, config: ClientConfig) -> None:
    """AdamW (Loshchilov and Hutter, ICLR 2019): weights decay beside the adaptive step, by lr * weight_decay."""
    params.mul_(1 - config.lr * config.weight_decay)
    _adapt(params, gradient, state, config)


def _adapt(params: torch.Tensor, gradient: torch.Tensor, state: State, config: ClientConfig) -> None:
    """The step that Adam and AdamW share."""
    (mean, square, steps), (beta1, beta2) = state, config.betas
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    steps.add_(1)
    corrected1, corrected2 = (
        (1 - beta ** steps.double()).to(params.dtype) for beta in config.betas
    )  # in float32, 1 - 0.999 loses digits
    denominator = torch.div(square, corrected2, out=gradient).sqrt_().add_(config.eps).mul_(corrected1)
    params.addcdiv_(mean, denominator, value=-config.lr)


def _velocity(params: torch.Tensor, config: ClientConfig) -> State:
    """What is left of earlier gradients; without momentum nothing is kept."""
    return (params.new_zeros(params.shape),) if config.momentum else ()


def _sgd(params: torch.Tensor, gradient: torch.Tensor, state: State, config: ClientConfig) -> None:
    """Gradient descent with momentum (Sutskever et al., ICML 2013, in torch's form), the L2 penalty added to the gradient.

    velocity = momentum * velocity + gradient; from zeros, the first step's is the gradient.
    """
    gradient.add_(params, alpha=config.weight_decay)
    for velocity in state:
        gradient = velocity.mul_(config.momentum).add_(gradient)
    params.add_(gradient, alpha=-config.lr)


OPTIMIZERS = {"adam": Optimizer(_moments, _adam), "adamw": Optimizer(_moments, _adamw), "sgd": Optimizer(_velocity, _sgd)}
