"""Train a group of clients from one adapter; the result is their updates and records, nothing else is changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from flora_hpc import optimizers, seeds
from flora_hpc.algorithms._algorithm import Local, LocalStep
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
    """Result of training a group."""

    updates: torch.Tensor  # (num_clients, num_params) float32
    losses: torch.Tensor  # (num_clients,) float64, mean over the examples seen
    num_steps: Ints  # (num_clients,)
    optimizer: State  # of the optimizer after the last step
    gradient_sum: torch.Tensor | None = None  # (num_clients, num_params) float32, of all steps, if `Local.sums_gradients`


@dataclass(frozen=True)
class Batches:
    """The examples of each client of a group at each step. Clients are sorted by their number of steps, longest first."""

    examples: Ints  # (num_steps, num_clients, batch) int64, indices of training examples
    present: Bools  # same shape; False where a client's batch is short, or the client has finished
    sizes: Ints  # (num_clients,) int64, number of examples of each client
    num_steps: Ints  # (num_clients,) int64, descending
    widths: Ints  # (num_steps,) int64, how many of a step's examples are computed; the rest is absent in all batches
    origin: tuple[int, int, Ints]  # seed, round and clients (num_clients,), which decide every random number


def padding_multiple(method: Method, config: ClientConfig, largest: int) -> int:
    """Unit of a batch's width, in examples: batches are padded to a multiple, so a client's shapes and bits depend on it alone.

    `largest` is the largest number of examples of a client. Absent examples (padding) cost little where image features are
    multiplied with class features. Where a tower computes each example, the unit is small, and only clients of equal cost share a
    group.
    """
    return PER_EXAMPLE if method.per_example else min(config.batch_size, largest)


def filled_up(sizes: Ints, config: ClientConfig, unit: int) -> Ints:
    """How many examples clients of `sizes` (n,) compute in an epoch, with padding: (n,) int64."""
    rest = sizes % config.batch_size
    return sizes - rest + np.minimum(config.batch_size, -(-rest // unit) * unit)


def make_batches(
    clients: Ints, holdings: Holdings, config: ClientConfig, seed: int, round_number: int, unit: int | None = None
) -> Batches:
    """Lay out the epochs of a group, as `lay_out` does."""
    return lay_out(clients, *holdings.examples_of(clients), config, seed, round_number, unit)


def batches_of(
    groups: Sequence[Ints], holdings: Holdings, config: ClientConfig, seed: int, round_number: int, unit: int | None = None
) -> list[Batches]:
    """Lay out the epochs of several groups. Where many clients draw their examples at once, each takes a fraction of the time."""
    held_rows, sizes = holdings.examples_of(np.concatenate(groups))
    sizes_of = np.split(sizes, np.cumsum([len(clients) for clients in groups])[:-1])
    rows_of = np.split(held_rows, np.cumsum([of_group.sum() for of_group in sizes_of])[:-1])
    parts = zip(groups, rows_of, sizes_of, strict=True)
    return [lay_out(clients, rows, of_group, config, seed, round_number, unit) for clients, rows, of_group in parts]


def lay_out(
    clients: Ints, held_rows: Ints, sizes: Ints, config: ClientConfig, seed: int, round_number: int, unit: int | None = None
) -> Batches:
    """Lay out the epochs of a group. The order of a client's examples depends on (seed, round, client) alone.

    `held_rows` are the examples of the clients, one client after the other, and are overwritten; `sizes` (num_clients,) is how
    many each has. `unit` is `padding_multiple`; None stands for whole batches.
    """
    longest, steps = int(sizes.max()), -(-sizes // config.batch_size)  # of an epoch
    assert (np.diff(steps) <= 0).all(), "the clients of a group come in order of their steps"
    unit = unit or config.batch_size
    width = min(config.batch_size, -(-longest // unit) * unit)
    examples = np.zeros((config.epochs * steps[0], len(clients), width), np.int64)
    present = np.zeros(examples.shape, bool)
    client = np.repeat(np.arange(len(clients)), sizes)
    step, column = np.divmod(np.arange(len(held_rows)) - (np.cumsum(sizes) - sizes)[client], config.batch_size)
    num_shuffled = int((sizes > config.batch_size).sum()) if config.shuffle else 0  # the order within one batch does not matter
    owned = np.arange(longest) < sizes[:num_shuffled, None]
    rows = np.zeros(owned.shape, np.int64)
    rows[owned] = held_rows[: sizes[:num_shuffled].sum()]
    for epoch in range(config.epochs):
        if num_shuffled:
            rows = shuffled(rows, owned, clients[:num_shuffled], seed, round_number, epoch)
            held_rows[: sizes[:num_shuffled].sum()] = rows[owned]
        at = ((epoch * steps[client] + step) * len(clients) + client) * width + column
        examples.reshape(-1)[at] = held_rows
        present.reshape(-1)[at] = True
    # padding of a short batch: one of the client's examples, with weight 0
    examples = np.where(present, examples, examples[:, :, :1])
    widths = np.minimum(width, -(-present.sum(2).max(1) // unit) * unit)
    return Batches(examples, present, sizes, config.epochs * steps, widths, (seed, round_number, clients))


def shuffled(rows: Ints, owned: Bools, clients: Ints, seed: int, round_number: int, epoch: int) -> Ints:
    """Shuffle each client's `rows` (num_clients, longest): those in the mask `owned` come first, in random order."""
    numbers = seeds.words(seed, "batches", round_number, epoch, of=clients, count=rows.shape[1])
    numbers[~owned] = np.iinfo(np.uint64).max  # sorted to the end, and by the stable sort behind an equal random number
    return np.take_along_axis(rows, np.argsort(numbers, axis=1, kind="stable"), axis=1)


class Task(NamedTuple):
    """Method, data and options of local training."""

    method: Method
    inputs: Inputs  # of all training examples
    labels: torch.Tensor  # (num_examples,) int64, on the device that trains
    config: ClientConfig
    local: Local = Local()


class Start(NamedTuple):
    """What the clients of a group have at the start of a round besides their examples."""

    params: torch.Tensor  # (num_params,) float32 of all clients, or (num_clients, num_params) where they differ
    mask: torch.Tensor | None = None  # (num_clients, num_params) bool: where it is False, numbers start and end at zero
    optimizer: State | None = None  # of an earlier round; updated in place
    message: Tensors = MappingProxyType({})  # from the server, (num_params,) each
    memory: Tensors = MappingProxyType({})  # for `Local`, (num_clients, num_params) each
    counts: torch.Tensor | None = None  # (num_clients, num_classes) of each client's examples, for `Local.loss`
    anchor: torch.Tensor | None = None  # (num_params,), what `Local.gradient` takes for the start, if not `params`
    relabel: torch.Tensor | None = (
        None  # (num_clients, num_classes) int64: the label that a client trains with instead of each class
    )


def train(task: Task, start: Start, batches: Batches, first: FirstStep | None = None) -> Trained:
    """Train every client of a group from its `start`; a client leaves the batch after its last step.

    `first` computes the gradient of the first step, where there is a Jacobian.
    """
    method, config, local, mask = task.method, task.config, task.local, start.mask
    num_clients, device = len(batches.num_steps), start.params.device
    is_shared = start.params.dim() == 1 and mask is None  # all clients hold the same adapter in the first step
    begin = start.params.expand(num_clients, -1)
    if mask is not None:
        begin = begin * mask
    params = begin.clone(memory_format=torch.contiguous_format)
    gradient_sum = torch.zeros_like(params) if local.sums_gradients else None
    state = start.optimizer
    optimizer = OPTIMIZERS[config.optimizer]
    state = optimizer.init(params, config) if state is None else state
    noise_seeds = draw_noise_seeds(batches) if method.noisy else None
    loss_sum = torch.zeros(num_clients, dtype=torch.float64, device=device)
    counts = batches.present.sum(2)  # examples of each step and client; on the host, so that no step waits for the device
    examples, present = send(batches.examples, device), send(batches.present, device)
    for step in range(len(examples)):
        n = int((batches.num_steps > step).sum())  # clients that have not finished
        width = int(batches.widths[step])
        rows = examples[step, :n, :width]
        input_rows = rows if method.sees == "features" else torch.from_numpy(batches.examples[step, :n, :width])
        noise = None if noise_seeds is None else noise_seeds[step][:n]
        labels = task.labels[rows] if start.relabel is None else start.relabel[:n].gather(1, task.labels[rows])
        of_step = Step(labels, input_rows, present[step, :n, :width], noise)
        leaf = (begin[:n] if step == 0 and is_shared else params[:n]).detach().requires_grad_()
        by_jacobian = first if step == 0 else None
        counts_by_class = None if start.counts is None else start.counts[:n]
        loss, classes = compute_loss(task, leaf, of_step, by_jacobian, counts_by_class)
        loss_sum[:n] += loss.detach().double() * of_step.present.sum(1)
        if not loss.requires_grad:  # nothing is trained
            continue
        if by_jacobian is not None:
            gradient = by_jacobian.gradient(loss, classes, leaf)
        else:
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        if gradient_sum is not None:
            gradient_sum[:n] += optimizers.penalized(gradient, params[:n], config)
        if local.gradient is not None:
            gradient = local.gradient(gradient, of_client(start, begin, params, n))
        if mask is not None:
            gradient = gradient.mul_(mask[:n])
        optimizer.step(params[:n], gradient, optimizers.first(state, n), config)
    if gradient_sum is not None and mask is not None:
        gradient_sum *= mask
    return Trained(params.sub_(start.params), loss_sum / send(counts.sum(0), device), batches.num_steps, state, gradient_sum)


def of_client(start: Start, begin: torch.Tensor, params: torch.Tensor, n: int) -> LocalStep:
    """What `Local.gradient` sees of the first `n` clients in a step."""
    origin = begin[:n] if start.anchor is None else start.anchor
    return LocalStep(params[:n], origin, start.message, {name: rows[:n] for name, rows in start.memory.items()})


class Step(NamedTuple):
    """The examples of one step. All tensors are (num_clients, batch)."""

    labels: torch.Tensor  # int64, of the training examples
    input_rows: torch.Tensor  # int64, numbers of the training examples, on the device that needs them for the inputs
    present: torch.Tensor  # bool, False for padding
    noise: Noise


def compute_loss(
    task: Task, leaf: torch.Tensor, step: Step, by_jacobian: FirstStep | None = None, counts: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each client's mean loss (num_clients,) with its numbers `leaf` (num_clients, num_params), and its classes.

    `counts` (num_clients, num_classes) are for a loss that needs each client's counts of the classes.
    """
    method, inputs, _, config, local = task
    tensors = method.unpack(leaf)
    if by_jacobian is not None:
        classes, targets = by_jacobian.classes.repeat(len(leaf), 1, 1).requires_grad_(), step.labels
    else:
        classes, targets = classes_and_targets(method, tensors, step.noise, step.labels)
    scores = method.logits(tensors, classes, inputs(step.input_rows), step.noise)
    if method.paired:  # captions of padding must not compete with others
        scores = scores.masked_fill(~step.present[:, None], torch.finfo(scores.dtype).min / 4)
    scores = scores.expand(len(leaf), -1, -1)
    if local.loss is not None:
        assert counts is not None
        return local.loss(scores, targets, step.present, counts), classes
    return LOSSES[config.loss](scores, targets, step.present), classes


def send(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Copy `array` to `device` without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def classes_and_targets(method: Method, tensors: Tensors, noise: Noise, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The classes that images are scored against, and each image's right class, for labels (num_clients, batch) int64.

    Where every image has its own caption, the captions of the batch take the place of the classes.
    """
    if not method.paired:
        return method.classes(tensors, noise), labels
    targets = torch.arange(labels.shape[1], device=labels.device).expand(len(labels), -1)
    return method.caption_features(tensors, noise, labels), targets


def draw_noise_seeds(batches: Batches) -> list[list[int]]:
    """A seed for each step and client, from (seed, round, client) alone."""
    seed, round_number, clients = batches.origin
    numbers = seeds.words(seed, "noise", round_number, of=clients, count=len(batches.examples)) >> np.uint64(2)
    noise_seeds: list[list[int]] = numbers.T.tolist()
    return noise_seeds
