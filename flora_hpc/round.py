"""One round of federated learning, as every rank plays it.

every rank holds the same adapter and server state
    cohort -> this rank's clients -> groups           the same result on every rank, nothing is sent (unless dynamic)
    each group trains; its weighted updates are added to a running sum
    the sum is added up over ranks                    one allreduce, exact
    the aggregator computes the next adapter          on every rank, nothing is sent
    the adapter is tested                             now, or in the next round by ranks that have trained their groups
    rank 0 gathers the reports and makes the record
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from flora_hpc import cohort, firststep, optimizers, trainer
from flora_hpc.accuracy import AdapterTests
from flora_hpc.comm.communicator import AgreedError
from flora_hpc.comm.meter import Meter
from flora_hpc.data.images import Ints
from flora_hpc.exact import ExactSum, blocks
from flora_hpc.records.known import NOT_TESTED, RankReport, RightAnswers, RoundRecord, merge
from flora_hpc.records.schema import CLIENTS, RANKS, Rows
from flora_hpc.setup import Setup, Site


class AbandonedError(Exception):
    """A round was given up."""


@dataclass
class State:
    """The state that a round changes. Every rank holds the same adapter and server state; optimizer states stay with their rank."""

    adapter: torch.Tensor  # (num_params,) float32
    server: Any
    optimizers: dict[int, optimizers.Kept]  # by number of this rank's group; empty unless client.optimizer_state is 'keep'
    tests: AdapterTests
    accepted_weight: int = 0  # of the updates that the last round added up; 0 when every update was rejected


def play(setup: Setup, site: Site, state: State, number: int) -> list[RoundRecord]:
    """Play round `number` (0 only evaluates) and update `state`. Returns, on rank 0, the records that are complete now.

    Raises AbandonedError, on every rank, when a signal abandons the round; adapter and server state are then unchanged.
    """
    comm, tests = site.comm, state.tests
    clients, previous_correct = np.zeros(0, CLIENTS), NOT_TESTED
    if number > 0:
        total, clients = train_my_groups(setup, site, state, number)
        previous_correct = tests.later(state.adapter, number - 1)
        if site.stop.agreed_to_abandon(comm):
            raise AbandonedError
        comm.allreduce(total.buffer)
        with comm.phase("server"):
            apply_mean(setup, state, total)
    correct = tests.now(state.adapter, number)
    reports = comm.gather(report(comm, number, clients, correct, previous_correct, state.adapter).to_bytes())
    if reports is None:
        return []
    with comm.phase("log"):
        rank_reports = [RankReport.from_bytes(data) for data in reports]
        return tests.complete_records(merge(number, rank_reports), rank_reports)


def apply_mean(setup: Setup, state: State, total: ExactSum) -> None:
    """Apply the weighted mean of updates to the adapter. When every update was rejected, the adapter stays as it was."""
    state.accepted_weight = total.total
    if total.total:
        mean = total.mean().to(state.adapter.device)
        state.adapter, state.server = checked(setup.aggregator.apply(state.adapter, mean, state.server), len(mean))


def checked(result: Any, num_params: int) -> tuple[torch.Tensor, Any]:
    """What an aggregator's `apply` returned. Raises AgreedError, on every rank, unless that is a finite adapter and a state."""
    rule = f"its apply must return the next adapter, a float32 tensor ({num_params},), and a state"
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], torch.Tensor):
        raise AgreedError(f"aggregator.name: {rule}, not a {type(result).__name__}; mend the rule")
    adapter, server = result
    if adapter.shape != (num_params,) or adapter.dtype != torch.float32:
        raise AgreedError(f"aggregator.name: {rule}, not {str(adapter.dtype)[6:]} {tuple(adapter.shape)}; mend the rule")
    if not all(torch.isfinite(bound) for bound in (torch.aminmax(adapter) if num_params else ())):
        raise AgreedError("aggregator.name: the rule made numbers that are not finite; lower its step, or mend the rule")
    return adapter, server


class Group(NamedTuple):
    """Clients that train in one batch of tensors."""

    round: int
    number: int  # of this rank's groups
    clients: Ints  # (num_clients,)


def train_my_groups(setup: Setup, site: Site, state: State, number: int) -> tuple[ExactSum, Rows]:
    """Train the groups of this rank. Returns the exact weighted sum of updates, and one row per client."""
    with site.comm.phase("batch"):
        local_groups = my_groups(setup, site, number)
        total, rows = ExactSum(setup.method.num_params), [np.zeros(0, CLIENTS)]
        num_local = sum(map(len, local_groups)) if isinstance(local_groups, Sequence) else 0
    timed = partial(site.comm.phase, "train")
    first = firststep.make(setup.method, state.adapter, site.comm, timed) if setup.by_jacobian else None
    done = 0
    site.trained(done, num_local, setup.num_participants)
    for index, clients in enumerate(timed_groups(site, local_groups)):
        if site.stop.abandons:
            break
        rows.append(train_group(setup, site, state, Group(number, index, clients), total, first))
        done += len(clients)
        site.trained(done, num_local, setup.num_participants)
    return total, np.concatenate(rows)


def timed_groups(site: Site, groups: Iterable[Ints]) -> Iterator[Ints]:
    """The same groups; the time of drawing the next one from a shared counter counts as `batch`."""
    iterator = iter(groups)
    while True:
        with site.comm.phase("batch"):
            clients = next(iterator, None)
        if clients is None:
            return
        yield clients


def train_group(setup: Setup, site: Site, state: State, group: Group, total: ExactSum, first: firststep.FirstStep | None) -> Rows:
    """Train a group and add its weighted updates to `total`. Returns one row per client."""
    comm, clients, method = site.comm, group.clients, setup.method
    started = comm.clock()
    with comm.phase("batch"):
        mask = method.holds(clients).to(site.device) if method.holds else None
        batches = trainer.make_batches(clients, setup.holdings, setup.client, setup.seed, group.round, setup.padding_multiple)
        optimizer_state = kept_optimizers(state, group)
    with comm.phase("train"):
        result = trainer.train(setup.task, state.adapter, batches, mask, optimizer_state, first)
    with comm.phase("sum"):
        accepted = total.add(result.updates, torch.from_numpy(batches.sizes))
        if setup.client.optimizer_state == "keep":
            optimizers.forget(result.optimizer, ~accepted)
            state.optimizers[group.number] = optimizers.Kept(clients, result.optimizer)
        rows = np.zeros(len(clients), CLIENTS)
        rows["round"], rows["client"], rows["rank"], rows["group"] = group.round, clients, comm.rank, group.number
        rows["num_examples"], rows["num_steps"] = batches.sizes, result.num_steps
        rows["weight"] = batches.sizes * accepted.numpy()
        rows["train_loss"], rows["update_norm"] = result.losses.cpu(), norms(result.updates, mask)
        rows["uplink_bytes"] = rows["downlink_bytes"] = method.bytes_of(clients)
        rows["train_seconds"] = (comm.clock() - started) * result.num_steps / result.num_steps.sum()
    return rows


def kept_optimizers(state: State, group: Group) -> optimizers.State | None:
    """The optimizer states that the group's clients kept from the previous round; None if there are none yet."""
    stored = state.optimizers.get(group.number)
    if stored is None:
        return None
    assert np.array_equal(stored.clients, group.clients), "with every client in every round, a rank's groups stay the same"
    return stored.state


def participants(setup: Setup, number: int) -> tuple[Ints, Ints]:
    """The participants (n,) of a round, and the cost of training each, in examples (n,)."""
    clients = cohort.sample(setup.cohort, setup.holdings.num_clients, setup.seed, number)
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
