"""Train a group of clients from one adapter: updates and records out, nothing else touched."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from flora_hpc import seeds
from flora_hpc.config import ClientConfig
from flora_hpc.data.images import Ints
from flora_hpc.data.shards import Shards
from flora_hpc.losses import LOSSES
from flora_hpc.methods._method import Method

Bools = npt.NDArray[np.bool_]


class AdamState(NamedTuple):
    """Adam's memory of a group: both moments (num_clients, num_params) float32, steps taken (num_clients, 1) float32."""

    first: torch.Tensor
    second: torch.Tensor
    steps: torch.Tensor


class Trained(NamedTuple):
    """What a group hands back."""

    updates: torch.Tensor  # (num_clients, num_params) float32
    losses: torch.Tensor  # (num_clients,) float32, mean over the examples seen
    num_steps: Ints  # (num_clients,)
    optimizer: AdamState


@dataclass(frozen=True)
class Batches:
    """Which examples each client of a group sees at each step; clients with less data finish early."""

    examples: Ints  # (num_steps, num_clients, batch) int64, indices into the training features
    present: Bools  # same shape; False where a client's batch is short
    active: Bools  # (num_steps, num_clients); False after a client's last step


def make_batches(clients: Ints, shards: Shards, config: ClientConfig, seed: int, round_number: int) -> Batches:
    """Lay out the epochs of a group. The order of a client's examples depends on (seed, round, client) alone."""
    plans = []
    for client in clients.tolist():
        examples = shards.examples(client)
        rng = seeds.generator(seed, "batches", round_number, client)
        epochs = [rng.permutation(examples) if config.shuffle else examples for _ in range(config.epochs)]
        plans.append([e[i : i + config.batch_size] for e in epochs for i in range(0, len(e), config.batch_size)])
    num_steps, width = max(map(len, plans)), max(len(batch) for plan in plans for batch in plan)
    examples = np.zeros((num_steps, len(clients), width), np.int64)
    present = np.zeros(examples.shape, bool)
    for k, plan in enumerate(plans):
        for step, batch in enumerate(plan):
            examples[step, k, : len(batch)] = batch
            present[step, k, : len(batch)] = True
    active: Bools = np.any(present, axis=2)
    present[~active] = True  # a finished client still takes part in the tensors, on any data; its step is discarded
    return Batches(examples, present, active)


def train(
    method: Method,
    adapter: torch.Tensor,
    batches: Batches,
    features: torch.Tensor,
    labels: torch.Tensor,
    config: ClientConfig,
    optimizer: AdamState | None = None,
) -> Trained:
    """Train every client of a group from `adapter` (num_params,) float32.

    `features` (num_examples, embed_dim) float32 and `labels` (num_examples,) int64 are the whole training set, on the adapter's
    device. Adam is that of torch.optim.Adam, weight decay added to the gradient.
    """
    num_clients, device = batches.active.shape[1], adapter.device
    params = adapter.repeat(num_clients, 1)
    if optimizer is None:
        zeros = torch.zeros_like(params)
        optimizer = AdamState(zeros, zeros, torch.zeros(num_clients, 1, device=device))
    loss_sum = torch.zeros(num_clients, device=device)
    examples = torch.from_numpy(batches.examples).to(device)
    present = torch.from_numpy(batches.present).to(device)
    active = torch.from_numpy(batches.active).to(device)[:, :, None]
    for step in range(len(examples)):
        params.requires_grad_()
        scores = method.logits(method.unpack(params), features[examples[step]])
        loss = LOSSES[config.loss](scores, labels[examples[step]], present[step])
        (gradient,) = torch.autograd.grad(loss.sum(), params)
        params = params.detach()
        new_params, new_optimizer = adam(params, gradient, optimizer, config)
        seen = present[step].sum(1)
        if batches.active[step].all():
            params, optimizer = new_params, new_optimizer
            loss_sum += loss.detach() * seen
        else:
            on = active[step]
            params = torch.where(on, new_params, params)
            optimizer = AdamState(*(torch.where(on, new, old) for new, old in zip(new_optimizer, optimizer, strict=True)))
            loss_sum += torch.where(on[:, 0], loss.detach() * seen, 0.0)
    num_seen = (batches.present & batches.active[:, :, None]).sum((0, 2))
    losses = loss_sum / torch.from_numpy(num_seen).to(device)
    return Trained(params - adapter, losses, batches.active.sum(0), optimizer)


def adam(params: torch.Tensor, gradient: torch.Tensor, state: AdamState, config: ClientConfig) -> tuple[torch.Tensor, AdamState]:
    """One step of Adam (Kingma and Ba, ICLR 2015) on (num_clients, num_params), L2 penalty added to the gradient."""
    beta1, beta2 = config.betas
    gradient = gradient + config.weight_decay * params
    first = state.first.lerp(gradient, 1 - beta1)
    second = beta2 * state.second + (1 - beta2) * gradient.square()
    steps = state.steps + 1
    corrected1, corrected2 = ((1 - beta ** steps.double()).float() for beta in config.betas)  # in float32, 1 - 0.999 loses digits
    denominator = (second / corrected2).sqrt() + config.eps
    return params - config.lr * (first / corrected1) / denominator, AdamState(first, second, steps)


def forget(state: AdamState, clients: torch.Tensor) -> AdamState:
    """`state` with nothing remembered of `clients` (num_clients,) bool: moments that are not finite would stay so for ever."""
    clients = clients[:, None].to(state.first.device)
    return AdamState(*(torch.where(clients, 0.0, part) for part in state))
