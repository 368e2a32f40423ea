"""The tensor operations of a round in a bare loop: no cohort, no batches to draw, no exact sum, no records, no file."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from flora_hpc import experiment, firststep, optimizers, trainer
from flora_hpc.bench.workload import built_alone
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.launch import Launch
from flora_hpc.config import Config
from flora_hpc.errors import UserError
from flora_hpc.firststep import FirstStep
from flora_hpc.losses import LOSSES
from flora_hpc.methods._method import Noise
from flora_hpc.optimizers import OPTIMIZERS
from flora_hpc.round import groups_of_ranks
from flora_hpc.setup import Setup


class Step(NamedTuple):
    """One step of a group, without the clients that have finished, which come last."""

    rows: torch.Tensor  # (num_clients, batch) int64
    present: torch.Tensor  # same shape, bool
    noise: Noise


class Group(NamedTuple):
    """A group with its steps, prepared before the measurement."""

    num_clients: int
    mask: torch.Tensor | None  # (num_clients, num_params): the parameters that each client holds
    steps: list[Step]


def lay_out(setup: Setup, number: int, device: torch.device) -> list[Group]:
    """Prepare the groups of round `number`, as a run makes them."""
    groups = []
    for members in groups_of_ranks(setup, 1, number)[0]:
        batches = trainer.make_batches(members, setup.holdings, setup.client, setup.seed, number, setup.padding_multiple)
        noise = trainer.draw_noise_seeds(batches) if setup.method.noisy else None
        steps = []
        for step in range(len(batches.examples)):
            n, width = int((batches.num_steps > step).sum()), int(batches.widths[step])
            rows, present = (torch.from_numpy(a[step, :n, :width].copy()).to(device) for a in (batches.examples, batches.present))
            steps.append(Step(rows, present, noise[step][:n] if noise else None))
        mask = setup.method.portions.mask(members).to(device) if setup.method.portions else None
        groups.append(Group(len(members), mask, steps))
    return groups


def train(setup: Setup, adapter: torch.Tensor, group: Group, first: FirstStep | None = None) -> torch.Tensor:
    """Train a group from `adapter` (num_params,); returns the clients' parameters (num_clients, num_params)."""
    params = adapter.repeat(group.num_clients, 1)
    if group.mask is not None:
        params *= group.mask
    optimizer = OPTIMIZERS[setup.client.optimizer]
    state = optimizer.init(params, setup.client)
    for step, (rows, present, noise) in enumerate(group.steps):
        n = len(rows)
        is_shared = step == 0 and group.mask is None
        leaf = (adapter.expand(n, -1) if is_shared else params[:n]).detach().requires_grad_()
        tensors = setup.method.unpack(leaf)
        first_step = first if step == 0 else None
        if first_step is not None:
            classes, targets = first_step.classes.repeat(n, 1, 1).requires_grad_(), setup.labels[rows]
        else:
            classes, targets = trainer.classes_and_targets(setup.method, tensors, noise, setup.labels[rows])
        scores = setup.method.logits(tensors, classes, setup.inputs(rows), noise)
        loss = LOSSES[setup.client.loss](scores.expand(n, -1, -1), targets, present)
        if first_step is not None:
            gradient = first_step.gradient(loss, classes, leaf)
        else:
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        if group.mask is not None:
            gradient *= group.mask[:n]
        optimizer.step(params[:n], gradient, optimizers.first(state, n), setup.client)
    return params


def build(config: Config, me: Launch) -> tuple[Setup, torch.Tensor, list[Group]]:
    """Build the inputs of the loop as a run does. Raises UserError like a run."""
    built, site = built_alone(config, me)
    setup = built.setup
    if setup.method.num_params == 0:
        raise UserError(f"--bare: {config.method.name} trains nothing, so that there is no loop to compare with; leave it out")
    if not config.is_fedavg:
        raise UserError("--bare: the bare loop trains and adds updates as fedavg does; take algorithm: fedavg with its defaults")
    if setup.method.paired:
        raise UserError("--bare: needs data with classes, but in these every image has a caption of its own; leave it out")
    if setup.method.sees == "features":
        del built.clip.model.visual  # as in a run
    return setup, experiment.first_state(built, site).adapter, lay_out(setup, 1, site.device)


def loop(config: Config, me: Launch) -> Callable[[], float]:
    """A function that plays one round in a bare loop, and returns its seconds."""
    setup, adapter, groups = build(config, me)

    def play() -> float:
        start = time.perf_counter()
        first = firststep.make(setup.method, adapter, Serial()) if setup.by_jacobian else None
        for group in groups:
            train(setup, adapter, group, first)
        if adapter.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return play
