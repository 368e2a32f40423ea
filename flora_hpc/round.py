"""One round of federated learning, as every rank plays it.

every rank holds the same adapter and server state
    cohort -> this rank's clients -> groups           the same result on every rank, nothing is sent (unless dynamic)
    memories of these clients are borrowed            from the ranks that keep them, where clients remember something
    each group trains; its rows are added to running sums: sharing, local, transform and combine of the algorithm
    the sums are added up over ranks                  one allreduce, exact
    the server computes the next adapter              on every rank, nothing is sent
    memories are given back                           as they are after the round; an abandoned round leaves them as they were
    the adapter is tested                             now, or in the next round by ranks that have trained their groups
    own models of this rank's clients are tested      with evaluate.personal
    rank 0 gathers the reports and makes the record
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from flora_hpc import cohort, firststep, trainer
from flora_hpc.accuracy import AdapterTests, sum_of
from flora_hpc.algorithms._algorithm import Ended, Now
from flora_hpc.comm.communicator import AgreedError
from flora_hpc.comm.meter import Meter
from flora_hpc.data.images import Ints
from flora_hpc.exact import ExactSums, blocks
from flora_hpc.memories import Borrowed, Memories
from flora_hpc.personal import Personal
from flora_hpc.records.known import NOT_TESTED, RankReport, RightAnswers, RoundRecord, merge
from flora_hpc.records.schema import CLIENTS, RANKS, Rows
from flora_hpc.roles import Roles, freeze
from flora_hpc.setup import Setup, Site
from flora_hpc.trainer import Batches, Start, Task, Trained

Tensors = dict[str, torch.Tensor]
NORM_BLOCK = 2**20  # numbers that are float64 at once


class AbandonedError(Exception):
    """A round was given up."""


@dataclass
class State:
    """The state that a round changes: the same adapter and server state on every rank, and the memories at home on this rank."""

    adapter: torch.Tensor  # (num_params,) float32
    server: Any
    tests: AdapterTests
    memories: Memories | None = None  # of clients; None where they remember nothing
    accepted_weight: int = 0  # of the updates that the last round added up; 0 when every update was rejected


def play(setup: Setup, site: Site, state: State, number: int) -> list[RoundRecord]:
    """Play round `number` (0 only evaluates) and update `state`. Returns, on rank 0, the records that are complete now.

    Raises AbandonedError, on every rank, when a signal abandons the round; adapter, server state and memories are then unchanged.
    """
    comm, tests = site.comm, state.tests
    trained, previous_correct, message_norm = TrainedGroups(ExactSums({})), NOT_TESTED, np.nan
    if number > 0:
        with comm.phase("log"):
            message_norm = norm_of_message(setup, state, number) if comm.rank == 0 else np.nan
        trained = train_my_groups(setup, site, state, number)
        previous_correct = tests.later(state.adapter, number - 1)
        if site.stop.agreed_to_abandon(comm):
            raise AbandonedError
        comm.allreduce(trained.sums.buffer)
        with comm.phase("server"):
            apply_sums(setup, state, trained.sums, number)
        if state.memories is not None:
            state.memories.give_back(*trained.changes(state.memories))
    correct = tests.now(state.adapter, number)
    if setup.evaluate.personal and number > 0 and setup.is_tested(number):
        test_own_models(setup, site, state.adapter, number, trained, correct)
    clients = np.concatenate([np.zeros(0, CLIENTS), *trained.rows])
    reports = comm.gather(report(comm, number, clients, correct, previous_correct, state.adapter).to_bytes())
    if reports is None:
        return []
    with comm.phase("log"):
        rank_reports = [RankReport.from_bytes(data) for data in reports]
        record = merge(number, rank_reports)
        record.row["message_norm"] = message_norm
        record.row["message_bytes"] = len(record.clients) * setup.federation.message_bytes(number) if number else 0
        return tests.complete_records(record, rank_reports)


def test_own_models(
    setup: Setup, site: Site, adapter: torch.Tensor, number: int, trained: "TrainedGroups", correct: RightAnswers
) -> None:
    """Test the own model of each client that this rank trained; `correct` are this rank's right answers with the new adapter."""
    total = sum_of([np.frombuffer(data, np.int64) for data in site.comm.allgather(correct.test.tobytes())])
    with site.comm.phase("eval"):
        tests = Personal(setup, number, adapter, total)
        for index, rows in enumerate(trained.rows):
            tests.test(rows, trained.remembered[index] if trained.remembered else {})


def apply_sums(setup: Setup, state: State, sums: ExactSums, number: int) -> None:
    """Apply the server's part to the means of the clients' rows. When every update was rejected, the adapter stays as it was.

    Numbers that clients did not send stay as they were, too, whatever the server remembers of them.
    """
    federation, adapter = setup.federation, state.adapter
    state.accepted_weight = sums.total("update")
    if not state.accepted_weight:
        return
    means = {name: mean.to(adapter.device) for name, mean in sums.means().items()}
    roles = federation.roles_in(number)
    whole = {
        name: roles.trained.put(torch.zeros_like(adapter), mean) for name, mean in means.items() if name in federation.local.sends
    }
    now = Now(number, sums.num_clients, federation.num_registered, state.accepted_weight, means | whole)
    direction = roles.sent.put(torch.zeros_like(adapter), federation.combine.finish(means, now))
    own = adapter if roles.sent.is_all else adapter.clone()  # a server may change its adapter in place
    result, state.server = checked(federation.server.apply(own, direction, state.server, now), len(adapter))
    state.adapter = roles.sent.put(adapter, roles.sent.take(result))


def checked(result: Any, num_params: int) -> tuple[torch.Tensor, Any]:
    """The result of a server's `apply`. Raises AgreedError, on every rank, unless it is a finite adapter and a state."""
    rule = f"the server's apply must return the next adapter, a float32 tensor ({num_params},), and a state"
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], torch.Tensor):
        raise AgreedError(f"algorithm.name: {rule}, not a {type(result).__name__}; mend the algorithm")
    adapter, server = result
    if adapter.shape != (num_params,) or adapter.dtype != torch.float32:
        raise AgreedError(f"algorithm.name: {rule}, not {str(adapter.dtype)[6:]} {tuple(adapter.shape)}; mend the algorithm")
    if not all(torch.isfinite(bound) for bound in (torch.aminmax(adapter) if num_params else ())):
        raise AgreedError("algorithm.name: the server made numbers that are not finite; lower its step, or mend the algorithm")
    return adapter, server


class Group(NamedTuple):
    """Clients that train in one batch of tensors."""

    round: int
    number: int  # of this rank's groups
    clients: Ints  # (num_clients,)


@dataclass
class TrainedGroups:
    """What the groups of this rank sent and remember."""

    sums: ExactSums
    rows: list[Rows] = field(default_factory=list)  # of /clients
    clients: list[Ints] = field(default_factory=list)  # (n,), whose memories changed
    remembered: list[Tensors] = field(default_factory=list)  # name -> (n, width) float32

    def changes(self, memories: Memories) -> tuple[Ints, Tensors]:
        """The clients (n,) whose `memories` changed, and their rows: name -> (n, width)."""
        empty = {name: torch.zeros(0, width) for name, width in zip(memories.names, memories.widths, strict=True)}
        clients = np.concatenate([np.zeros(0, np.int64), *self.clients])
        return clients, {name: torch.cat([rows[name] for rows in (empty, *self.remembered)]) for name in memories.names}


class Plan(NamedTuple):
    """What all groups of a round have in common."""

    number: int  # of the round
    roles: Roles
    task: Task
    start: torch.Tensor  # (num_trained,), the trained numbers of the adapter
    message: Tensors  # from the server, (num_trained,) each
    borrowed: Borrowed | None  # memories of clients
    first: firststep.FirstStep | None


def train_my_groups(setup: Setup, site: Site, state: State, number: int) -> TrainedGroups:
    """Train the groups of this rank: the exact sums of what they send, a row for each client, and what clients remember."""
    federation = setup.federation
    with site.comm.phase("batch"):
        local_groups = my_groups(setup, site, number)
        trained = TrainedGroups(ExactSums(federation.channels(number)))
        num_local = sum(map(len, local_groups)) if isinstance(local_groups, Sequence) else 0
    borrowed = None
    if state.memories is not None:
        wanted = local_groups if isinstance(local_groups, Sequence) else [participants(setup, number)[0]]  # dynamic: any of all
        borrowed = state.memories.borrow(np.concatenate([np.zeros(0, np.int64), *wanted]))
    plan = make_plan(setup, site, state, number, borrowed)
    done = 0
    site.trained(done, num_local, setup.num_participants)
    for index, clients in enumerate(timed_groups(site, local_groups)):
        if site.stop.abandons:
            break
        train_group(setup, site, plan, Group(number, index, clients), trained)
        done += len(clients)
        site.trained(done, num_local, setup.num_participants)
    return trained


def make_plan(setup: Setup, site: Site, state: State, number: int, borrowed: Borrowed | None) -> Plan:
    """Prepare a round: trained tensors, the server's message, and the Jacobian where there is one. All ranks call this."""
    federation, roles = setup.federation, setup.federation.roles_in(number)
    method = freeze(setup.method, roles, state.adapter)
    start = roles.trained.take(state.adapter)
    message = {name: roles.trained.take(numbers) for name, numbers in federation.server.message(state.server).items()}
    timed = partial(site.comm.phase, "train")
    first = firststep.make(method, start, site.comm, timed) if setup.by_jacobian else None
    return Plan(number, roles, setup.task._replace(method=method), start, message, borrowed, first)


def timed_groups(site: Site, groups: Iterable[Ints]) -> Iterator[Ints]:
    """The same groups; the time of drawing the next one from a shared counter counts as `batch`."""
    iterator = iter(groups)
    while True:
        with site.comm.phase("batch"):
            clients = next(iterator, None)
        if clients is None:
            return
        yield clients


def train_group(setup: Setup, site: Site, plan: Plan, group: Group, trained: TrainedGroups) -> None:
    """Train a group, add what it sends to the sums of `trained`, and its rows and memories to the lists."""
    comm, clients, federation = site.comm, group.clients, setup.federation
    started = comm.clock()
    with comm.phase("batch"):
        batches = trainer.make_batches(clients, setup.holdings, setup.client, setup.seed, group.round, setup.padding_multiple)
        memory = {} if plan.borrowed is None else {name: rows.to(site.device) for name, rows in plan.borrowed.read(clients).items()}
        start = starting(setup, plan, clients, batches, memory)
    with comm.phase("train"):
        result = trainer.train(plan.task, start, batches, plan.first)
        personal = train_personal(plan, start, batches, memory)
    with comm.phase("sum"):
        rows, remembered, encoded_bytes = leaving(setup, plan, start, result, memory)
        weights = federation.combine.weights(torch.from_numpy(batches.sizes))
        equal = torch.ones_like(weights)
        accepted = trained.sums.add(rows, {name: equal if name in federation.local.sends else weights for name in rows})
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
        table["downlink_bytes"] = sent_bytes + federation.message_bytes(group.round)
        table["uplink_bytes"] = (sent_bytes if encoded_bytes is None else encoded_bytes) + federation.extra_bytes(group.round)
        table["train_seconds"] = (comm.clock() - started) * result.num_steps / result.num_steps.sum()
        trained.rows.append(table)


def starting(setup: Setup, plan: Plan, clients: Ints, batches: Batches, memory: Tensors) -> Start:
    """What the clients of a group start with: the server's adapter and message, and what each of them remembers."""
    method, roles, params = setup.method, plan.roles, plan.start
    if "private" in memory:
        params = roles.private.put(params.repeat(len(clients), 1), memory["private"])
    mask = roles.trained.take(method.portions.mask(clients)).to(params.device) if method.portions else None
    parts = [memory[name].clone() for name in memory if name.startswith("optimizer.")]
    counts = class_counts(setup, batches) if plan.task.local.loss is not None else None
    return Start(params, mask, tuple(parts) or None, plan.message, part_of(memory, "local."), counts)


def class_counts(setup: Setup, batches: Batches) -> torch.Tensor:
    """Each client's examples of each class (num_clients, num_classes) float32, on the device of the labels."""
    labels = setup.labels[torch.from_numpy(batches.examples).to(setup.labels.device)].movedim(1, 0).flatten(1)
    present = torch.from_numpy(batches.present).to(labels.device).movedim(1, 0).flatten(1)
    counts = torch.zeros(len(labels), setup.num_classes, device=labels.device)
    return counts.scatter_add_(1, labels, present.float()).div_(setup.client.epochs)


def train_personal(plan: Plan, start: Start, batches: Batches, memory: Tensors) -> Tensors:
    """Train each client's own model from where it was, towards the server's adapter: what the client remembers of it."""
    local = plan.task.local
    if local.personal is None:
        return {}
    task = plan.task._replace(local=local._replace(gradient=local.personal, personal=None, sums_gradients=False))
    own = start._replace(params=memory["personal"], optimizer=None, anchor=plan.start)
    return {"personal": memory["personal"] + trainer.train(task, own, batches).updates}


def leaving(setup: Setup, plan: Plan, start: Start, result: Trained, memory: Tensors) -> tuple[Tensors, Tensors, Ints | None]:
    """What the clients of a group send, what they remember, and the encoded bytes of their updates (num_clients,), if encoded.

    Each kind of rows is (num_clients, n) float32.
    """
    federation, roles, updates = setup.federation, plan.roles, result.updates
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
        encoded_bytes = num_bytes.numpy()
    prepared = {"update": update} if federation.combine.prepare is None else federation.combine.prepare(update, num_steps)
    return prepared | sent, remembered, encoded_bytes


def part_of(memory: Tensors, prefix: str) -> Tensors:
    """The memories whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): rows for name, rows in memory.items() if name.startswith(prefix)}


def unless_rejected(accepted: torch.Tensor, before: Tensors, after: Tensors) -> Tensors:
    """Memories after a round (n, width), on the CPU. A rejected client keeps its rows of `before`: NaN would never leave them."""
    finite = torch.stack([torch.isfinite(rows).all(1) for rows in after.values()]).all(0)
    mask = (accepted.to(finite.device) & finite)[:, None]
    return {name: torch.where(mask, after[name], rows).cpu() for name, rows in before.items()}


def participants(setup: Setup, number: int) -> tuple[Ints, Ints]:
    """The participants (n,) of a round, and the cost of training each, in examples (n,)."""
    clients = setup.schedule.clients(number)
    return clients, setup.client.epochs * trainer.filled_up(setup.holdings.sizes(clients), setup.client, setup.padding_multiple)


def groups_of_ranks(setup: Setup, num_ranks: int, number: int, ranks: Sequence[int] | None = None) -> list[list[Ints]]:
    """The groups of each of `num_ranks` ranks, or of those in `ranks` alone.

    With dynamic assignment this is a forecast, for ranks that are equally fast.
    """
    clients, costs = participants(setup, number)
    return cohort.groups_of_ranks(clients, costs, setup.grouping, num_ranks, setup.cohort.assignment, ranks)


def my_groups(setup: Setup, site: Site, number: int) -> Iterable[Ints]:
    """The groups that this rank trains. With dynamic assignment, this rank draws the next group when it asks for it."""
    if setup.cohort.assignment == "dynamic":
        groups = cohort.units(*participants(setup, number), setup.grouping, site.comm.size)
        return (groups[index] for index in site.counters.draw("groups", number, len(groups)))
    return groups_of_ranks(setup, site.comm.size, number, [site.comm.rank])[0]


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


def norm_of_message(setup: Setup, state: State, number: int) -> float:
    """Euclidean norm of all that the server sends in round `number` besides the adapter; NaN without any."""
    trained, sent = setup.federation.roles_in(number).trained, setup.federation.server.message(state.server)
    if not sent:
        return np.nan
    squares = 0.0
    for numbers in sent.values():
        for part in torch.split(trained.take(numbers).cpu(), NORM_BLOCK):  # by NumPy, since its bits depend on no threads
            squares += float(np.square(part.numpy().astype(np.float64)).sum())
    return float(np.sqrt(squares))


def report(
    comm: Meter, number: int, clients: Rows, correct: RightAnswers, previous_correct: RightAnswers, adapter: torch.Tensor
) -> RankReport:
    """This rank's report to rank 0: its rows of /clients, its counts of right answers, and its timeline since the last round."""
    with comm.phase("log"):
        adapter_digest = digest(adapter)
    lap = comm.lap()
    row = np.zeros(1, RANKS)
    row["round"], row["rank"], row["num_clients"] = number, comm.rank, len(clients)
    for phase, value in lap.seconds.items():
        row[f"{phase}_seconds"] = value
    row["round_seconds"], row["collective_bytes"], row["peak_memory_bytes"] = lap.total, lap.num_bytes, peak_memory_bytes()
    return RankReport(row, clients, correct, adapter_digest, np.array(lap.collectives), previous_correct)


def peak_memory_bytes() -> int:
    """The largest resident set of this process so far (Linux's VmHWM, which does not include the parent's memory)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def digest(adapter: torch.Tensor) -> int:
    """A hash of the adapter, 64 bits."""
    data = np.ascontiguousarray(adapter.cpu().numpy())  # hashed without a copy: it may be a whole CLIP
    return int.from_bytes(hashlib.blake2b(data.data, digest_size=8).digest(), "little", signed=True)
