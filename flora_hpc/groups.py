"""A group of clients in a round: what they start with, how they train, what they send and what they remember.

borrowed memories, the server's adapter and message
  -> starting        params, mask, optimizer, what `Local` remembers
  -> trainer.train   one batch of tensors for all clients of the group
  -> leaving         rows to send, what to remember, encoded bytes
  -> TrainedGroups   exact sums, rows of /clients, memories
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from flora_hpc import firststep, trainer
from flora_hpc.algorithms._algorithm import Ended
from flora_hpc.data.images import Ints
from flora_hpc.exact import ExactSums, blocks
from flora_hpc.memories import Borrowed, Memories
from flora_hpc.products import ProductSums
from flora_hpc.records.schema import CLIENTS, Rows
from flora_hpc.roles import Roles
from flora_hpc.setup import Setup, Site
from flora_hpc.trainer import Batches, Start, Task, Trained

Tensors = dict[str, torch.Tensor]


class Group(NamedTuple):
    """Clients that train in one batch of tensors."""

    round: int
    number: int  # of this rank's groups
    clients: Ints  # (num_clients,)


@dataclass
class TrainedGroups:
    """What the groups of this rank sent and remember."""

    sums: ExactSums
    products: ProductSums | None = None  # of factors of low-rank adapters, where they are asked for
    rows: list[Rows] = field(default_factory=list)  # of /clients
    clients: list[Ints] = field(default_factory=list)  # (n,), whose memories changed
    remembered: list[Tensors] = field(default_factory=list)  # name -> (n, width) float32

    def changes(self, memories: Memories) -> tuple[Ints, Tensors]:
        """The clients (n,) whose `memories` changed, and their rows: name -> (n, width)."""
        empty = {name: torch.zeros(0, width) for name, width in zip(memories.names, memories.widths, strict=True)}
        clients = np.concatenate([np.zeros(0, np.int64), *self.clients])
        return clients, {name: torch.cat([rows[name] for rows in (empty, *self.remembered)]) for name in memories.names}


class Common(NamedTuple):
    """What all groups of a round have in common."""

    number: int  # of the round
    roles: Roles
    task: Task
    start: torch.Tensor  # (num_trained,), the trained numbers of the adapter
    message: Tensors  # from the server, (num_trained,) each
    borrowed: Borrowed | None  # memories of clients
    first: firststep.FirstStep | None


def train_group(setup: Setup, site: Site, common: Common, group: Group, trained: TrainedGroups) -> None:
    """Train a group, add what it sends to the sums of `trained`, and its rows and memories to the lists."""
    comm, clients, federation = site.comm, group.clients, setup.federation
    started = comm.clock()
    with comm.phase("batch"):
        batches = trainer.make_batches(clients, setup.holdings, setup.client, setup.seed, group.round, setup.padding_multiple)
        memory = (
            {} if common.borrowed is None else {name: rows.to(site.device) for name, rows in common.borrowed.read(clients).items()}
        )
        start = starting(setup, common, clients, batches, memory)
    with comm.phase("train"):
        result = trainer.train(common.task, start, batches, common.first)
        personal = train_personal(common, start, batches, memory)
    with comm.phase("sum"):
        rows, remembered, encoded_bytes = leaving(setup, common, start, result, memory)
        weights = federation.combine.weights(torch.from_numpy(batches.sizes))
        equal = torch.ones_like(weights)
        of_rows = {name: equal if name in federation.local.sends else weights for name in rows}
        fits = trained.products.fits(rows["update"], weights) if trained.products is not None else equal.bool()
        accepted = trained.sums.add(rows, of_rows, fits if federation.combine.replaces else None)
        if trained.products is not None:
            trained.products.add(rows["update"], weights, accepted & fits)
        if memory:
            trained.clients.append(clients)
            trained.remembered.append(unless_rejected(accepted, memory, remembered | personal))
        own = list(part_of(trained.remembered[-1], "local.").values()) if memory else []
        table = np.zeros(len(clients), CLIENTS)
        table["round"], table["client"], table["rank"], table["group"] = group.round, clients, comm.rank, group.number
        table["num_examples"], table["num_steps"] = batches.sizes, result.num_steps
        table["weight"] = (weights * accepted).numpy()
        table["train_loss"], table["update_norm"] = result.losses.cpu(), norms(result.updates, start.mask)
        table["memory_norm"] = np.sqrt(sum(norms(part, None).numpy() ** 2 for part in own)) if own else np.nan
        table["global_accuracy"], table["personal_accuracy"] = np.nan, np.nan
        sent_bytes = 4 * federation.sent_numbers(setup.method, clients, group.round)
        table["downlink_bytes"] = 4 * federation.received_numbers(setup.method, clients, group.round) + federation.message_bytes(
            group.round
        )
        table["uplink_bytes"] = (sent_bytes if encoded_bytes is None else encoded_bytes) + federation.extra_bytes(group.round)
        table["train_seconds"] = (comm.clock() - started) * result.num_steps / result.num_steps.sum()
        trained.rows.append(table)


def starting(setup: Setup, common: Common, clients: Ints, batches: Batches, memory: Tensors) -> Start:
    """What the clients of a group start with: the server's adapter and message, and what each of them remembers."""
    method, roles, params = setup.method, common.roles, common.start
    if "private" in memory:
        params = roles.private.put(params.repeat(len(clients), 1), memory["private"])
    mask = roles.trained.take(method.portions.mask(clients)).to(params.device) if method.portions else None
    parts = [memory[name].clone() for name in memory if name.startswith("optimizer.")]
    counts = class_counts(setup, batches) if common.task.local.loss is not None else None
    return Start(params, mask, tuple(parts) or None, common.message, part_of(memory, "local."), counts)


def class_counts(setup: Setup, batches: Batches) -> torch.Tensor:
    """Each client's examples of each class (num_clients, num_classes) float32, on the device of the labels."""
    labels = setup.labels[torch.from_numpy(batches.examples).to(setup.labels.device)].movedim(1, 0).flatten(1)
    present = torch.from_numpy(batches.present).to(labels.device).movedim(1, 0).flatten(1)
    counts = torch.zeros(len(labels), setup.num_classes, device=labels.device)
    return counts.scatter_add_(1, labels, present.float()).div_(setup.client.epochs)


def train_personal(common: Common, start: Start, batches: Batches, memory: Tensors) -> Tensors:
    """Train each client's own model from where it was, towards the server's adapter: what the client remembers of it."""
    local = common.task.local
    if local.personal is None:
        return {}
    task = common.task._replace(local=local._replace(gradient=local.personal, personal=None, sums_gradients=False))
    own = start._replace(params=memory["personal"], optimizer=None, anchor=common.start)
    return {"personal": memory["personal"] + trainer.train(task, own, batches).updates}


def leaving(setup: Setup, common: Common, start: Start, result: Trained, memory: Tensors) -> tuple[Tensors, Tensors, Ints | None]:
    """What the clients of a group send, what they remember, and the encoded bytes of their updates (num_clients,), if encoded.

    Each kind of rows is (num_clients, n) float32.
    """
    federation, roles, updates = setup.federation, common.roles, result.updates
    num_steps = torch.from_numpy(result.num_steps)[:, None].to(updates.device)
    sent: Tensors = {}
    remembered: Tensors = {f"optimizer.{i}": part for i, part in enumerate(result.optimizer) if f"optimizer.{i}" in memory}
    if federation.local.end is not None:
        sent, own = federation.local.end(Ended(updates, result.gradient_sum, num_steps, start.message, start.memory))
        remembered |= {f"local.{name}": rows for name, rows in own.items()}
    if "private" in memory:
        remembered["private"] = memory["private"] + roles.private.take(updates)
    update, encoded_bytes = roles.shared.take(updates), None
    if federation.transform is not None:
        update, own, num_bytes = federation.transform.apply(update, part_of(memory, "transform."))
        remembered |= {f"transform.{name}": rows for name, rows in own.items()}
        encoded_bytes = num_bytes.cpu().numpy()
    prepared = {"update": update} if federation.combine.prepare is None else federation.combine.prepare(update, num_steps)
    if federation.by_holder:
        assert start.mask is not None
        held = roles.shared.take(start.mask)
        prepared |= {"update": update * held, "held": held.float()}
    return prepared | sent, remembered, encoded_bytes


def part_of(memory: Tensors, prefix: str) -> Tensors:
    """The memories whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): rows for name, rows in memory.items() if name.startswith(prefix)}


def unless_rejected(accepted: torch.Tensor, before: Tensors, after: Tensors) -> Tensors:
    """Memories after a round (n, width), on the CPU. A rejected client keeps its rows of `before`: NaN would never leave them."""
    finite = torch.stack([torch.isfinite(rows).all(1) for rows in after.values()]).all(0)
    mask = (accepted.to(finite.device) & finite)[:, None]
    return {name: torch.where(mask, after[name], rows).cpu() for name, rows in before.items()}


def norms(updates: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Norm of each client's update, (num_clients,) float64; parameters where its `mask` is False do not count.

    In float32, a sum of 151 million squares stops growing: each square is less than half the distance to the next float.
    """
    squares = torch.zeros(len(updates), dtype=torch.float64, device=updates.device)
    for block in blocks(updates.shape[1], len(updates), updates.device):
        part = updates[:, block].double()
        if mask is not None:
            part *= mask[:, block]
        squares += part.square_().sum(1)
    return squares.sqrt_().cpu()
