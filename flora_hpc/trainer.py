"""Train a group of clients from one adapter: updates and records out, nothing else touched."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from flora_hpc import optimizers, seeds
from flora_hpc.config import ClientConfig
from flora_hpc.data.images import Ints
from flora_hpc.data.inputs import Inputs
from flora_hpc.data.shards import Shards
from flora_hpc.losses import LOSSES
from flora_hpc.methods._method import Method, Noise, Tensors
from flora_hpc.optimizers import OPTIMIZERS, State

Bools = npt.NDArray[np.bool_]


class Trained(NamedTuple):
    """What a group hands back."""

    updates: torch.Tensor  # (num_clients, num_params) float32
    losses: torch.Tensor  # (num_clients,) float32, mean over the examples seen
    num_steps: Ints  # (num_clients,)
    optimizer: State  # what it remembers, to go on from


@dataclass(frozen=True)
class Batches:
    """Which examples each client of a group sees at each step. Clients come in order of their number of steps, longest first."""

    examples: Ints  # (num_steps, num_clients, batch) int64, indices of training examples
    present: Bools  # same shape; False where a client's batch is short, or the client has finished
    num_steps: Ints  # (num_clients,) int64, none larger than the one before it
    origin: tuple[int, int, Ints]  # seed, round and clients (num_clients,), which decide every random number


def make_batches(clients: Ints, shards: Shards, config: ClientConfig, seed: int, round_number: int) -> Batches:
    """Lay out the epochs of a group. The order of a client's examples depends on (seed, round, client) alone."""
    plans = []
    for client in clients.tolist():
        examples = shards.examples(client)
        rng = seeds.generator(seed, "batches", round_number, client)
        epochs = [rng.permutation(examples) if config.shuffle else examples for _ in range(config.epochs)]
        plans.append([e[i : i + config.batch_size] for e in epochs for i in range(0, len(e), config.batch_size)])
    num_steps = np.array([len(plan) for plan in plans])
    assert (np.diff(num_steps) <= 0).all(), "the clients of a group come in order of their size"
    width = max(len(batch) for plan in plans for batch in plan)
    examples = np.zeros((num_steps[0], len(clients), width), np.int64)
    present = np.zeros(examples.shape, bool)
    for k, plan in enumerate(plans):
        for step, batch in enumerate(plan):
            examples[step, k] = batch[0]  # where the batch is short: an example of the client's own, which counts for nothing
            examples[step, k, : len(batch)] = batch
            present[step, k, : len(batch)] = True
    return Batches(examples, present, num_steps, (seed, round_number, clients))


def train(
    method: Method,
    adapter: torch.Tensor,
    batches: Batches,
    inputs: Inputs,
    labels: torch.Tensor,
    config: ClientConfig,
    held: torch.Tensor | None = None,
    state: State | None = None,
) -> Trained:
    """Train every client of a group from `adapter` (num_params,) float32.

    `inputs` and `labels` (num_examples,) int64 are the whole training set, on the adapter's device. A client of which `held`
    (num_clients, num_params) bool is False somewhere starts with zeros there, trains the rest, and ends with zeros there. A client
    that has made its last step leaves the batch. `state`, what the optimizer remembers from an earlier round, is moved on in place.
    """
    num_clients, device = len(batches.num_steps), adapter.device
    params = adapter.repeat(num_clients, 1)
    if held is not None:
        params *= held
    optimizer = OPTIMIZERS[config.optimizer]
    state = optimizer.init(params, config) if state is None else state
    noise_seeds = draw_noise_seeds(batches) if method.noisy else None
    loss_sum = torch.zeros(num_clients, device=device)
    examples, present = (torch.from_numpy(array).to(device) for array in (batches.examples, batches.present))
    for step in range(len(examples)):
        n = int((batches.num_steps > step).sum())  # clients still at work
        width = int(batches.present[step].sum(1).max())  # of the longest batch; the last one of an epoch is often short
        rows, there = examples[step, :n, :width], present[step, :n, :width]
        noise = None if noise_seeds is None else noise_seeds[step][:n]
        leaf = params[:n].detach().requires_grad_()
        tensors = method.unpack(leaf)
        classes, targets = choices(method, tensors, noise, labels[rows])
        scores = method.logits(tensors, classes, inputs(rows), noise)
        if method.paired:  # captions that only fill up a short batch compete with nobody
            scores = scores.masked_fill(~there[:, None], torch.finfo(scores.dtype).min / 4)
        loss = LOSSES[config.loss](scores.expand(n, -1, -1), targets, there)
        loss_sum[:n] += loss.detach() * there.sum(1)
        if not loss.requires_grad:  # nothing is trained
            continue
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        if held is not None:
            gradient *= held[:n]
        optimizer.step(params[:n], gradient, optimizers.first(state, n), config)
    losses = loss_sum / torch.from_numpy(batches.present.sum((0, 2))).to(device)
    return Trained(params.sub_(adapter), losses, batches.num_steps, state)


def choices(method: Method, tensors: Tensors, noise: Noise, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What images are scored against, and which of it is right for each, for labels (num_clients, batch) int64.

    That is all classes; but where every image has a caption of its own, the captions of the batch.
    """
    if not method.paired:
        return method.classes(tensors, noise), labels
    return method.classes(tensors, noise, labels), torch.arange(labels.shape[1], device=labels.device).expand(len(labels), -1)


def draw_noise_seeds(batches: Batches) -> list[list[int]]:
    """A seed for each step and client, from (seed, round, client) alone."""
    seed, round_number, clients = batches.origin
    sources = [seeds.generator(seed, "noise", round_number, client) for client in clients.tolist()]
    return [[int(source.integers(2**62)) for source in sources] for _ in batches.examples]
