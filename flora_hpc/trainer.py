"""Train a group of clients from one adapter: updates and records out, nothing else touched."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from flora_hpc import optimizers, seeds
from flora_hpc.config import ClientConfig
from flora_hpc.data.holdings import Holdings
from flora_hpc.data.images import Ints
from flora_hpc.data.inputs import Inputs
from flora_hpc.firststep import FirstStep
from flora_hpc.losses import LOSSES
from flora_hpc.methods._method import Method, Noise, Tensors
from flora_hpc.optimizers import OPTIMIZERS, State

Bools = npt.NDArray[np.bool_]
PER_EXAMPLE = 8  # examples


class Trained(NamedTuple):
    """What a group hands back."""

    updates: torch.Tensor  # (num_clients, num_params) float32
    losses: torch.Tensor  # (num_clients,) float64, mean over the examples seen
    num_steps: Ints  # (num_clients,)
    optimizer: State  # what it remembers, to go on from


@dataclass(frozen=True)
class Batches:
    """Which examples each client of a group sees at each step. Clients come in order of their number of steps, longest first."""

    examples: Ints  # (num_steps, num_clients, batch) int64, indices of training examples
    present: Bools  # same shape; False where a client's batch is short, or the client has finished
    sizes: Ints  # (num_clients,) int64, examples of each client
    num_steps: Ints  # (num_clients,) int64, none larger than the one before it
    widths: Ints  # (num_steps,) int64, how many of a step's examples are computed; the rest is absent in all batches
    origin: tuple[int, int, Ints]  # seed, round and clients (num_clients,), which decide every random number


def width_unit(method: Method, config: ClientConfig, largest: int) -> int:
    """Batches are filled up to a multiple of this many examples, so that a client's shapes, and its bits, are its own.

    `largest` is how many examples a client has at most. Absent examples cost little where features of images meet those of classes.
    Where a tower computes each example, few are absent, and only clients with as many of them share a group.
    """
    return PER_EXAMPLE if method.per_example else min(config.batch_size, largest)


def filled_up(sizes: Ints, config: ClientConfig, unit: int) -> Ints:
    """How many examples clients of `sizes` (n,) compute in an epoch, absent ones included: (n,) int64."""
    rest = sizes % config.batch_size
    return sizes - rest + np.minimum(config.batch_size, -(-rest // unit) * unit)


def make_batches(
    clients: Ints, holdings: Holdings, config: ClientConfig, seed: int, round_number: int, unit: int | None = None
) -> Batches:
    """Lay out the epochs of a group. The order of a client's examples depends on (seed, round, client) alone.

    `unit` is `width_unit`; None stands for whole batches.
    """
    held, sizes = holdings.examples_of(clients)
    longest, steps = int(sizes.max()), -(-sizes // config.batch_size)  # of an epoch
    assert (np.diff(steps) <= 0).all(), "the clients of a group come in order of their steps"
    unit = unit or config.batch_size
    wide = min(config.batch_size, -(-longest // unit) * unit)
    examples = np.zeros((config.epochs * steps[0], len(clients), wide), np.int64)
    present = np.zeros(examples.shape, bool)
    client = np.repeat(np.arange(len(clients)), sizes)
    step, column = np.divmod(np.arange(len(held)) - (np.cumsum(sizes) - sizes)[client], config.batch_size)
    mixed = int((sizes > config.batch_size).sum()) if config.shuffle else 0  # clients; the order within one batch does not matter
    owned = np.arange(longest) < sizes[:mixed, None]
    rows = np.zeros(owned.shape, np.int64)
    rows[owned] = held[: sizes[:mixed].sum()]
    for epoch in range(config.epochs):
        if mixed:
            rows = shuffled(rows, owned, clients[:mixed], seed, round_number, epoch)
            held[: sizes[:mixed].sum()] = rows[owned]
        at = ((epoch * steps[client] + step) * len(clients) + client) * wide + column
        examples.reshape(-1)[at] = held
        present.reshape(-1)[at] = True
    # where a batch is short: an example of the client's own, which counts for nothing
    examples = np.where(present, examples, examples[:, :, :1])
    widths = np.minimum(wide, -(-present.sum(2).max(1) // unit) * unit)
    return Batches(examples, present, sizes, config.epochs * steps, widths, (seed, round_number, clients))


def shuffled(rows: Ints, owned: Bools, clients: Ints, seed: int, round_number: int, epoch: int) -> Ints:
    """`rows` (num_clients, longest) with those that are `owned`, which come first, in an order of the client's own."""
    numbers = seeds.words(seed, "batches", round_number, epoch, of=clients, count=rows.shape[1])
    numbers[~owned] = np.iinfo(np.uint64).max  # sorted to the end, behind an equal number that was drawn
    return np.take_along_axis(rows, np.argsort(numbers, axis=1, kind="stable"), axis=1)


class Task(NamedTuple):
    """What clients train, on what, and how."""

    method: Method
    inputs: Inputs  # of all training examples
    labels: torch.Tensor  # (num_examples,) int64, on the device that trains
    config: ClientConfig


def train(
    task: Task,
    adapter: torch.Tensor,
    batches: Batches,
    mask: torch.Tensor | None = None,
    state: State | None = None,
    first: FirstStep | None = None,
) -> Trained:
    """Train every client of a group from `adapter` (num_params,) float32.

    A client whose `mask` (num_clients, num_params) bool is False somewhere starts with zeros there, trains the rest, and ends with
    zeros there. A client that has made its last step leaves the batch. `state`, what the optimizer remembers from an earlier round,
    is moved on in place. `first` gives the gradient of the first step, where there is a Jacobian.
    """
    method, inputs, labels, config = task
    num_clients, device = len(batches.num_steps), adapter.device
    params = adapter.repeat(num_clients, 1)
    if mask is not None:
        params *= mask
    optimizer = OPTIMIZERS[config.optimizer]
    state = optimizer.init(params, config) if state is None else state
    noise_seeds = draw_noise_seeds(batches) if method.noisy else None
    loss_sum = torch.zeros(num_clients, dtype=torch.float64, device=device)
    counts = batches.present.sum(2)  # examples of each step and client; on the host, so that no step waits for the device
    examples, present = send(batches.examples, device), send(batches.present, device)
    for step in range(len(examples)):
        n = int((batches.num_steps > step).sum())  # clients still at work
        width = int(batches.widths[step])
        rows, there = examples[step, :n, :width], present[step, :n, :width]
        noise = None if noise_seeds is None else noise_seeds[step][:n]
        same = step == 0 and mask is None  # all hold the adapter
        leaf = (adapter.expand(n, -1) if same else params[:n]).detach().requires_grad_()
        tensors = method.unpack(leaf)
        crowd = first if step == 0 else None
        if crowd is not None:
            classes, targets = crowd.classes.repeat(n, 1, 1).requires_grad_(), labels[rows]
        else:
            classes, targets = choices(method, tensors, noise, labels[rows])
        wanted = rows if method.sees == "features" else torch.from_numpy(batches.examples[step, :n, :width])
        scores = method.logits(tensors, classes, inputs(wanted), noise)
        if method.paired:  # captions that only fill up a short batch compete with nobody
            scores = scores.masked_fill(~there[:, None], torch.finfo(scores.dtype).min / 4)
        loss = LOSSES[config.loss](scores.expand(n, -1, -1), targets, there)
        loss_sum[:n] += loss.detach().double() * there.sum(1)
        if not loss.requires_grad:  # nothing is trained
            continue
        if crowd is not None:
            gradient = crowd.gradient(loss, classes, leaf)
        else:
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        if mask is not None:
            gradient *= mask[:n]
        optimizer.step(params[:n], gradient, optimizers.first(state, n), config)
    return Trained(params.sub_(adapter), loss_sum / send(counts.sum(0), device), batches.num_steps, state)


def send(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """`array` on `device`, for which the host does not wait."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


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
    numbers = seeds.words(seed, "noise", round_number, of=clients, count=len(batches.examples)) >> np.uint64(2)
    drawn: list[list[int]] = numbers.T.tolist()
    return drawn
