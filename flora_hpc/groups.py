"""A group of clients in a round: what they start with, how they train, what they send and what they remember.

borrowed memories, the server's adapter and message
  -> starting        params, mask, optimizer, what `Local` remembers
  -> trainer.train   one batch of tensors for all clients of the group
     train           the same, and then without the ranks that clients drop, where they do
  -> leaving         rows to send, what to remember, encoded bytes
  -> TrainedGroups   exact sums or updates, rows of /clients, memories
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import NamedTuple

import numpy as np
import torch

from flora_hpc import firststep, lowrank, pruning, trainer
from flora_hpc.algorithms._algorithm import Ended
from flora_hpc.data.images import Ints
from flora_hpc.exact import ExactSums, norms
from flora_hpc.federation import Federation
from flora_hpc.memories import Borrowed, Memories
from flora_hpc.methods._method import Method
from flora_hpc.products import Sums
from flora_hpc.records.schema import CLIENTS, Rows
from flora_hpc.roles import Roles
from flora_hpc.rows import Updates
from flora_hpc.setup import Setup, Site
from flora_hpc.trainer import Batches, Start, Task, Trained

Tensors = dict[str, torch.Tensor]
AT_ONCE = 2**16  # examples that are drawn at once: 2,048 clients with 32 each took half of the time of 250 (measured)


class Group(NamedTuple):
    """Clients that train in one batch of tensors."""

    round: int
    number: int  # of this rank's groups
    clients: Ints  # (num_clients,)
    batches: Batches
    batch_seconds: float  # that its batches took, its share where they were made with those of others


@dataclass
class TrainedGroups:
    """What the groups of this rank sent and remember."""

    sums: ExactSums
    updates: Updates | None = None  # where the combine part needs all of them at once; the sums then only count clients
    products: Sums | None = None  # of factors of low-rank adapters, where they are asked for
    rows: list[Rows] = field(default_factory=list)  # of /clients
    clients: list[Ints] = field(default_factory=list)  # (n,), whose memories changed
    remembered: list[Tensors] = field(default_factory=list)  # name -> (n, width) float32

    def add(self, clients: Ints, rows: Tensors, weights: Tensors, lengths: Tensors, needs_products: bool) -> torch.Tensor:
        """Add what clients send; `lengths` are the norms of each row. Returns (num_clients,) bool: False for a dropped client.

        A client whose products are too large is dropped where the algorithm `needs_products`; else it is missing in them alone.
        """
        if self.updates is None:
            fits = None if self.products is None else lowrank.fits(self.products.places, rows["update"], weights["update"])
            accepted = self.sums.add(rows, weights, lengths, fits if needs_products else None)
            if self.products is not None and fits is not None:
                self.products.add(clients, rows["update"], weights["update"], accepted & fits)
            return torch.from_numpy(accepted)
        finite = self.updates.add(clients, rows["update"])
        self.sums.add({"update": rows["update"][finite, :0]}, {"update": weights["update"][finite]})
        return finite

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
    adapter: torch.Tensor  # (num_params,), the server's


def with_batches(setup: Setup, site: Site, number: int, groups: Iterable[Ints]) -> Iterator[Group]:
    """The groups of this rank in round `number`, with the examples of each step; the time to find and make them counts as `batch`.

    Several groups get their batches at once, unless groups are drawn from a shared counter.
    """
    parts, numbers = iter(parts_of(groups, setup.holdings.largest)), count()
    while True:
        started = site.comm.clock()
        with site.comm.phase("batch"):
            part = next(parts, None)
            if part is None:
                return
            batches = trainer.batches_of(part, setup.holdings, setup.client, setup.seed, number, setup.padding_multiple)
        seconds = (site.comm.clock() - started) / len(part)
        for clients, of_group in zip(part, batches, strict=True):
            yield Group(number, next(numbers), clients, of_group, seconds)


def parts_of(groups: Iterable[Ints], largest: int) -> Iterator[Sequence[Ints]]:
    """Consecutive groups, whose clients have about AT_ONCE examples together; `largest` is the number of examples of a client."""
    if not isinstance(groups, Sequence):
        yield from ([clients] for clients in groups)
        return
    step = max(1, AT_ONCE // (largest * max(map(len, groups), default=1)))
    yield from (groups[start : start + step] for start in range(0, len(groups), step))


def train_group(setup: Setup, site: Site, common: Common, group: Group, trained: TrainedGroups) -> None:
    """Train a group, add what it sends to the sums of `trained`, and its rows and memories to the lists."""
    comm, clients, batches, federation = site.comm, group.clients, group.batches, setup.federation
    started = comm.clock() - group.batch_seconds
    if federation.attackers is not None and len(setup.backdoor):  # labels of half of the rows are of triggered images
        examples = federation.attackers.poisoned(clients, batches.examples, len(setup.labels) // 2)
        batches = replace(batches, examples=examples)
    with comm.phase("batch"):
        memory = (
            {} if common.borrowed is None else {name: rows.to(site.device) for name, rows in common.borrowed.read(clients).items()}
        )
        start = starting(setup, common, clients, batches, memory)
    with comm.phase("train"):
        result, start, rank_memory = train(setup, common, clients, start, batches, memory)
        personal = train_personal(common, start, batches, memory)
    with comm.phase("sum"):
        rows, remembered, encoded_bytes = leaving(setup, common, clients, start, result, memory)
        weights = federation.combine.weights(torch.from_numpy(batches.sizes))
        equal = torch.ones_like(weights)
        update_norm = norms(result.updates, start.mask)
        lengths = {name: update_norm if row is result.updates and start.mask is None else norms(row) for name, row in rows.items()}
        weights_of = {name: equal if name in federation.local.sends else weights for name in rows}
        accepted = trained.add(clients, rows, weights_of, lengths, federation.combine.replaces)
        if memory:
            trained.clients.append(clients)
            trained.remembered.append(unless_rejected(accepted, memory, remembered | rank_memory | personal))
        memory_after = trained.remembered[-1] if memory else {}
        own = list(part_of(memory_after, "local.").values())
        table = np.zeros(len(clients), CLIENTS)
        table["round"], table["client"], table["rank"], table["group"] = group.round, clients, comm.rank, group.number
        table["num_examples"], table["num_steps"] = batches.sizes, result.num_steps
        table["attacks"] = 0 if federation.attackers is None else federation.attackers.mask[clients]
        if setup.method.portions is not None and setup.method.portions.ranks is not None:
            table["adapter_rank"] = pruning.ranks_of(pruning.holding(setup.method, clients, memory_after), clients)
        table["weight"] = (weights * accepted).numpy()
        table["train_loss"], table["update_norm"] = result.losses.cpu(), update_norm
        table["memory_norm"] = np.sqrt(sum(norms(part).numpy() ** 2 for part in own)) if own else np.nan
        table["global_accuracy"], table["personal_accuracy"], table["rank_accuracy"] = np.nan, np.nan, np.nan
        before, after = (pruning.holding(setup.method, clients, part) for part in (memory, rank_memory))
        sent_bytes = 4 * federation.sent_numbers(after, clients, group.round)
        received_bytes = 4 * federation.received_numbers(before, clients, group.round)
        table["downlink_bytes"] = received_bytes + federation.message_bytes(group.round)
        table["uplink_bytes"] = (sent_bytes if encoded_bytes is None else encoded_bytes) + federation.extra_bytes(group.round)
        table["train_seconds"] = (comm.clock() - started) * result.num_steps / result.num_steps.sum()
        trained.rows.append(table)


def server_update(setup: Setup, common: Common) -> torch.Tensor:
    """The update (1, num_shared) that the server trains on its own images, as a client that takes part for the first time."""
    client, size = np.array([setup.federation.num_registered]), np.array([len(setup.server)])
    unit = trainer.padding_multiple(setup.method, setup.client, len(setup.server))
    batches = trainer.lay_out(client, setup.server.copy(), size, setup.client, setup.seed, common.number, unit)
    counts = class_counts(setup, batches) if common.task.local.loss is not None else None
    memory = {name: torch.zeros_like(common.start)[None] for name in common.task.local.memory}
    start = Start(common.start, message=common.message, memory=memory, counts=counts)
    result = trainer.train(common.task, start, batches, common.first)
    return common.roles.shared.take(result.updates)


def starting(setup: Setup, common: Common, clients: Ints, batches: Batches, memory: Tensors) -> Start:
    """What the clients of a group start with: the server's adapter and message, and what each of them remembers."""
    roles, params = common.roles, common.start
    portions = pruning.holding(setup.method, clients, memory).portions
    if "private" in memory:
        params = roles.private.put(params.repeat(len(clients), 1), memory["private"])
    mask = roles.trained.take(portions.mask(clients)).to(params.device) if portions else None
    parts = [memory[name].clone() for name in memory if name.startswith("optimizer.")]
    relabel = None
    if (
        setup.federation.attackers is not None
        and (labels := setup.federation.attackers.labels(clients, setup.num_classes)) is not None
    ):
        relabel = labels.to(params.device)
    counts = class_counts(setup, batches) if common.task.local.loss is not None else None
    if relabel is not None and counts is not None:
        counts = torch.zeros_like(counts).scatter_add_(1, relabel, counts)
    return Start(params, mask, tuple(parts) or None, common.message, part_of(memory, "local."), counts, relabel=relabel)


def class_counts(setup: Setup, batches: Batches) -> torch.Tensor:
    """Each client's examples of each class (num_clients, num_classes) float32, on the device of the labels."""
    labels = setup.labels[torch.from_numpy(batches.examples).to(setup.labels.device)].movedim(1, 0).flatten(1)
    present = torch.from_numpy(batches.present).to(labels.device).movedim(1, 0).flatten(1)
    counts = torch.zeros(len(labels), setup.num_classes, device=labels.device)
    return counts.scatter_add_(1, labels, present.float()).div_(setup.client.epochs)


def train(
    setup: Setup, common: Common, clients: Ints, start: Start, batches: Batches, memory: Tensors
) -> tuple[Trained, Start, Tensors]:
    """Train the clients of a group from their `start`; those that drop ranks then hold and send what is left.

    Returns the training with zeros in place of the dropped ranks, `start` with the mask of what is left, and what clients remember
    of it; all as they are where no client may drop ranks.
    """
    local = common.task.local
    if local.pruning is None:
        return trainer.train(common.task, start, batches, common.first), start, {}
    assert start.mask is not None
    method = pruning.holding(setup.method, clients, memory)
    ranks = pruning.ranks_of(method, clients)
    left = pruning.ranks_left(local.pruning, ranks)
    mask_left = pruning.mask_of(method, left).to(start.mask.device)
    tail = start.mask & ~mask_left
    with_penalty = pruning.with_penalty(local.gradient, method, tail, local.pruning.penalty)
    result = trainer.train(common.task._replace(local=local._replace(gradient=with_penalty)), start, batches)
    sizes = [pruning.tail_sizes(method, params, tail) for params in (start.params.expand_as(tail), start.params + result.updates)]
    drops = sizes[1] < sizes[0]
    mask = torch.where(drops[:, None], mask_left, start.mask)
    updates = torch.where(mask, result.updates, -start.params)
    optimizer = tuple(part * mask if part.shape == mask.shape else part for part in result.optimizer)
    num_pruned = pruning.ranks_of(setup.method, clients) - np.where(drops.cpu().numpy(), left, ranks)
    remembered = {pruning.MEMORY: torch.from_numpy(num_pruned).float()[:, None]}
    return result._replace(updates=updates, optimizer=optimizer), start._replace(mask=mask), remembered


def train_personal(common: Common, start: Start, batches: Batches, memory: Tensors) -> Tensors:
    """Train each client's own model from where it was, towards the server's adapter: what the client remembers of it."""
    local = common.task.local
    if local.personal is None:
        return {}
    task = common.task._replace(local=local._replace(gradient=local.personal, personal=None, sums_gradients=False))
    own = start._replace(params=memory["personal"], optimizer=None, anchor=common.start)
    return {"personal": memory["personal"] + trainer.train(task, own, batches).updates}


def leaving(
    setup: Setup, common: Common, clients: Ints, start: Start, result: Trained, memory: Tensors
) -> tuple[Tensors, Tensors, Ints | None]:
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
    if federation.attackers is not None:
        update = federation.attackers.alone(common.number, clients, update)
    if federation.transform is not None:
        update, own, num_bytes = federation.transform.apply(update, part_of(memory, "transform."))
        remembered |= {f"transform.{name}": rows for name, rows in own.items()}
        encoded_bytes = num_bytes.cpu().numpy()
    mask = None if start.mask is None else roles.shared.take(start.mask)
    prepared, chosen_bytes = to_add(setup.method, federation, roles, common.adapter, update, num_steps, mask)
    return prepared | sent, remembered, encoded_bytes if chosen_bytes is None else chosen_bytes


def to_add(
    method: Method,
    federation: Federation,
    roles: Roles,
    adapter: torch.Tensor,
    update: torch.Tensor,
    num_steps: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> tuple[Tensors, Ints | None]:
    """The rows that are added up, made of the `update` (num_clients, num_shared) that clients send, as the combine part wants them.

    Also the bytes that clients send (num_clients,), where they choose what to send. `adapter` (num_params,) is that of the start of
    the round. In `mask`, shaped like `update`, are the numbers that a client holds; None where all clients hold all.
    """
    combine = federation.combine
    prepared = {"update": update} if combine.prepare is None else combine.prepare(update, num_steps)
    if federation.by_holder:
        assert mask is not None
        prepared |= {"update": update * mask, "held": mask.float()}
    if combine.by_norm:
        norms_of_products = lowrank.norms(method, adapter + update)
        prepared |= {"update": update * norms_of_products, "norms": norms_of_products}
    if combine.by_rank is None:
        return prepared, None
    chosen, num_ranks = lowrank.important(lowrank.places(method, roles), adapter, update, combine.by_rank)
    num_bytes = 4 * (chosen.sum(1).cpu().numpy() + num_ranks)  # a rank's numbers, and its place among all ranks
    return prepared | {"update": update * chosen, "held": chosen.float()}, num_bytes


def part_of(memory: Tensors, prefix: str) -> Tensors:
    """The memories whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): rows for name, rows in memory.items() if name.startswith(prefix)}


def unless_rejected(accepted: torch.Tensor, before: Tensors, after: Tensors) -> Tensors:
    """Memories after a round (n, width), on the CPU. A rejected client keeps its rows of `before`: NaN would never leave them."""
    finite = torch.stack([torch.isfinite(rows).all(1) for rows in after.values()]).all(0)
    mask = (accepted.to(finite.device) & finite)[:, None]
    return {name: torch.where(mask, after[name], rows).cpu() for name, rows in before.items()}
