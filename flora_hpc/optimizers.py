"""Optimizers of the clients, for many clients at once: Adam, AdamW and SGD, each as torch.optim has it.

All steps change plain tensors in place, gradients included: when all weights of a CLIP are trained, copies would fill the memory.
An optimizer's state is a tuple of tensors with one row for each client, so that some of the clients can take a step.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from flora_hpc.config import ClientConfig

State = tuple[torch.Tensor, ...]  # (num_clients, num_params) or (num_clients, 1) each, float32


class Optimizer(NamedTuple):
    """An optimizer: its initial state and its step.

    `init(params, config)` makes the state for params (num_clients, num_params) float32. `step(params, gradient, state, config)`
    updates params and state in place, and overwrites `gradient`.
    """

    init: Callable[[torch.Tensor, ClientConfig], State]
    step: Callable[[torch.Tensor, torch.Tensor, State, ClientConfig], None]


def penalized(gradient: torch.Tensor, params: torch.Tensor, config: ClientConfig) -> torch.Tensor:
    """The gradient of a client's objective: of its loss, plus the L2 penalty where the optimizer adds one."""
    if config.optimizer == "adamw" or not config.weight_decay:
        return gradient
    return gradient + config.weight_decay * params


def first(state: State, num_clients: int) -> State:
    """The state of the first `num_clients` clients, as views of `state`."""
    return tuple(part[:num_clients] for part in state)


def _moments(params: torch.Tensor, config: ClientConfig) -> State:
    """Zeros for both moments, and for the number of steps of each client.

    zeros_like is no choice: for a tensor on device 'meta', by which `groupsize` computes sizes, PyTorch would load sympy.
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
    # in float64, since 1 - 0.999 loses digits in float32
    corrected1, corrected2 = ((1 - beta ** steps.double()).to(params.dtype) for beta in config.betas)
    denominator = torch.div(square, corrected2, out=gradient).sqrt_().add_(config.eps).mul_(corrected1)
    params.addcdiv_(mean, denominator, value=-config.lr)


def _velocity(params: torch.Tensor, config: ClientConfig) -> State:
    """Zeros for the velocity; without momentum there is no state."""
    return (params.new_zeros(params.shape),) if config.momentum else ()


def _sgd(params: torch.Tensor, gradient: torch.Tensor, state: State, config: ClientConfig) -> None:
    """Gradient descent with momentum (Sutskever et al., ICML 2013, in torch's form), the L2 penalty added to the gradient.

    velocity = momentum * velocity + gradient. It starts at zero, so in the first step it is the gradient.
    """
    gradient.add_(params, alpha=config.weight_decay)
    for velocity in state:
        gradient = velocity.mul_(config.momentum).add_(gradient)
    params.add_(gradient, alpha=-config.lr)


OPTIMIZERS = {"adam": Optimizer(_moments, _adam), "adamw": Optimizer(_moments, _adamw), "sgd": Optimizer(_velocity, _sgd)}
