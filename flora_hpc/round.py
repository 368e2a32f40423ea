"""One round of federated learning, as every rank plays it.

every rank holds the same adapter and server state
    cohort -> my clients -> in groups                 the same answer on every rank, nothing is sent (unless dynamic)
    each group trains; its weighted updates are added to a running sum
    the sum is added up over ranks                    one allreduce, exact
    the server's rule makes the next adapter          on every rank, sent to none
    the adapter is tested, or will be by ranks that have trained their groups of the next round
    reports go to rank 0, which makes the record
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from flora_hpc import cohort, evaluate, firststep, optimizers, trainer
from flora_hpc.aggregators._aggregator import Aggregator
from flora_hpc.cohort import Grouping
from flora_hpc.comm.communicator import Communicator
from flora_hpc.comm.exact import ExactSum, blocks
from flora_hpc.comm.meter import Meter
from flora_hpc.comm.stop import Stop
from flora_hpc.comm.tickets import Tickets
from flora_hpc.config import ClientConfig, CohortConfig, EvaluateConfig
from flora_hpc.data.images import Ints
from flora_hpc.data.inputs import Features, Inputs
from flora_hpc.data.shards import Shards
from flora_hpc.evaluate import Mixes
from flora_hpc.methods._method import Method
from flora_hpc.records.known import RankReport, RoundRecord, merge
from flora_hpc.records.schema import CLIENTS, RANKS, Rows

NOTHING = np.zeros(0, np.int64)  # was tested


@dataclass(frozen=True)
class Federation:
    """What stays the same in every round."""

    seed: int
    rounds: int
    cohort: CohortConfig
    client: ClientConfig
    evaluate: EvaluateConfig
    method: Method
    aggregator: Aggregator
    shards: Shards
    grouping: Grouping
    by_jacobian: bool  # whether clients make their first step by one; see `firststep`
    labels: torch.Tensor  # (num_images,) int64, on this rank's device
    test: torch.Tensor  # rows (num_test_images,) int64 of the images, on this rank's device
    mixes: Mixes | None = None  # of clients that are tested on their own, on rank 0
    inputs: Inputs = field(default_factory=lambda: Features(torch.empty(0, 0)))  # what the method sees of all images
    tickets: Tickets = field(default_factory=Tickets)  # for work that goes to idle ranks
    stop: Stop = field(default_factory=Stop)  # whether this rank was asked to
    trained: Callable[[int, int, int], None] = lambda done, mine, cohort: None  # told after each group; see Background.trained

    @property
    def width_unit(self) -> int:
        """Batches are filled up to a multiple of this many examples; see `trainer.width_unit`."""
        return trainer.width_unit(self.method, self.client, self.shards.largest)


class AbandonedError(Exception):
    """A round was given up."""


@dataclass
class State:
    """What a round changes. Every rank holds the same adapter and server state; optimizer states stay with their rank."""

    adapter: torch.Tensor  # (num_params,) float32
    server: Any
    optimizers: dict[int, optimizers.Kept]  # by number of this rank's group; empty unless client.optimizer_state is 'keep'
    untested: RoundRecord | None = None  # on rank 0: the round before, if its adapter is tested during this one
    weight: int = 0  # of all updates that the last round of training added up; 0 when every one was rejected


def play(fed: Federation, comm: Meter, state: State, number: int) -> list[RoundRecord]:
    """Play round `number` (0 only evaluates) and move `state` on. Returns, on rank 0, the records that are complete now.

    Raises AbandonedError, on every rank, when a signal says so; adapter and server state are those of the round before then.
    """
    rows, before, correct = np.zeros(0, CLIENTS), NOTHING, NOTHING
    if number > 0:
        total, rows = train_my_groups(fed, comm, state, number)
        if tested_later(fed, number - 1):
            with comm.phase("eval"):
                before = count_correct(fed, state, lambda n: fed.tickets.draw("test", number, n))
        if fed.stop.agreed_to_abandon(comm):
            raise AbandonedError
        comm.allreduce(total.buffer)
        state.weight = total.total
        with comm.phase("server"):
            if total.total:
                mean = total.mean().to(state.adapter.device)
                state.adapter, state.server = fed.aggregator.apply(state.adapter, mean, state.server)
    if tested(fed, number) and not tested_later(fed, number):
        with comm.phase("eval"):
            correct = count_correct(fed, state, lambda n: range(comm.rank, n, comm.size))
    reports = comm.gather(report(comm, number, rows, correct, before, state.adapter).to_bytes())
    if reports is None:
        return []
    with comm.phase("log"):
        told = [RankReport.from_bytes(data) for data in reports]
        record = merge(number, told)
        note_accuracy(fed, record, [report.correct for report in told])
    complete = [record]
    if state.untested is not None:
        note_accuracy(fed, state.untested, [report.before for report in told])
        complete = [state.untested, record]
    state.untested = complete.pop() if tested_later(fed, number) else None
    return complete


def tested(fed: Federation, number: int) -> bool:
    """Whether the adapter after round `number` is tested."""
    return number % fed.evaluate.every == 0 or number == fed.rounds


def tested_later(fed: Federation, number: int) -> bool:
    """Whether the adapter after round `number` is tested during the next round."""
    return fed.evaluate.overlap and tested(fed, number) and number < fed.rounds


def count_correct(fed: Federation, state: State, mine: Callable[[int], Iterable[int]]) -> Ints:
    """How many test images of each class the adapter gets right, of the blocks that are `mine`."""
    return evaluate.count_correct(fed.method, state.adapter, fed.inputs, fed.labels, fed.test, mine)


def note_accuracy(fed: Federation, record: RoundRecord, counts: list[Ints]) -> None:
    """Put into a record what the ranks' `counts` of right answers say; they are empty when nothing was tested."""
    correct = sum_of(counts)
    if len(correct):
        record.row["test_accuracy"] = correct.sum() / len(fed.test)
        if fed.mixes is not None:
            fed.mixes.note(record.row, correct)


def train_my_groups(fed: Federation, comm: Meter, state: State, number: int) -> tuple[ExactSum, Rows]:
    """Train the groups that fall to this rank: their exact weighted sum, and one row per client."""
    with comm.phase("batch"):
        mine = my_groups(fed, comm, number)
        total, rows = ExactSum(fed.method.num_params), [np.zeros(0, CLIENTS)]
        num_mine = sum(map(len, mine)) if isinstance(mine, Sequence) else 0
        done, num_all = 0, fed.cohort.num_clients(fed.shards.num_clients)
    train = partial(comm.phase, "train")
    first = firststep.make(fed.method, state.adapter, comm, train) if fed.by_jacobian else None
    fed.trained(done, num_mine, num_all)
    for index, members in enumerate(mine):
        if fed.stop.abandons:
            break
        started = comm.clock()
        with comm.phase("batch"):
            held = fed.method.holds(members).to(state.adapter.device) if fed.method.holds else None
            batches = trainer.make_batches(members, fed.shards, fed.client, fed.seed, number, fed.width_unit)
            kept_state = kept_optimizers(state, index, members)
        with comm.phase("train"):
            result = trainer.train(
                fed.method,
                state.adapter,
                batches,
                fed.inputs,
                fed.labels,
                fed.client,
                held,
                kept_state,
                first,
            )
        with comm.phase("sum"):
            weights = batches.sizes
            kept = total.add(result.updates, torch.from_numpy(weights))
            if fed.client.optimizer_state == "keep":
                optimizers.forget(result.optimizer, ~kept)
                state.optimizers[index] = optimizers.Kept(members, result.optimizer)
            row = np.zeros(len(members), CLIENTS)
            row["round"], row["client"], row["rank"], row["group"] = number, members, comm.rank, index
            row["num_examples"], row["num_steps"], row["weight"] = weights, result.num_steps, weights * kept.numpy()
            row["train_loss"], row["update_norm"] = result.losses.cpu(), norms(result.updates, held)
            row["uplink_bytes"] = row["downlink_bytes"] = fed.method.bytes_of(members)
            row["train_seconds"] = (comm.clock() - started) * result.num_steps / result.num_steps.sum()
            rows.append(row)
        done += len(members)
        fed.trained(done, num_mine, num_all)
    return total, np.concatenate(rows)


def kept_optimizers(state: State, group: int, members: Ints) -> optimizers.State | None:
    """What the optimizers of `members` remember, of this rank's group of that number; None where they begin."""
    kept = state.optimizers.get(group)
    if kept is None:
        return None
    assert np.array_equal(kept.clients, members), "with every client in every round, a rank's groups stay the same"
    return kept.state


def participants(fed: Federation, number: int) -> tuple[Ints, Ints]:
    """The clients (n,) of a round, and what they cost to train, in examples (n,)."""
    clients = cohort.sample(fed.cohort, fed.shards.num_clients, fed.seed, number)
    return clients, fed.client.epochs * trainer.filled_up(fed.shards.sizes(clients), fed.client, fed.width_unit)


def groups_of_ranks(fed: Federation, num_ranks: int, number: int, wanted: Sequence[int] | None = None) -> list[list[Ints]]:
    """The groups of clients that each of `num_ranks`, or of those `wanted`, trains; if dynamic, of ranks of the same speed."""
    clients, costs = participants(fed, number)
    return cohort.groups_of_ranks(clients, costs, fed.grouping, num_ranks, fed.cohort.assignment, wanted)


def my_groups(fed: Federation, comm: Communicator, number: int) -> Iterable[Ints]:
    """The groups that this rank trains. With dynamic assignment, the next one is settled when this rank asks for it."""
    if fed.cohort.assignment == "dynamic":
        groups = cohort.units(*participants(fed, number), fed.grouping, comm.size)
        return (groups[ticket] for ticket in fed.tickets.draw("groups", number, len(groups)))
    return groups_of_ranks(fed, comm.size, number, [comm.rank])[0]


def sum_of(counts: list[Ints]) -> Ints:
    """The sum of counts of classes, of which some lists end before the others."""
    total = np.zeros(max(map(len, counts)), np.int64)
    for part in counts:
        total[: len(part)] += part
    return total


def norms(updates: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Length of what each client trained (num_clients,) float64; numbers where its `mask` is False have not been trained.

    In float32, a sum of 151 million squares stops growing: each is less than half the distance to the next float.
    """
    squares = torch.zeros(len(updates), dtype=torch.float64, device=updates.device)
    for block in blocks(updates.shape[1], len(updates), updates.device):
        part = updates[:, block].double()
        if mask is not None:
            part *= mask[:, block]
        squares += part.square_().sum(1)
    return squares.sqrt_().cpu()


def report(comm: Meter, number: int, clients: Rows, correct: Ints, before: Ints, adapter: torch.Tensor) -> RankReport:
    """What this rank tells rank 0: its rows of /clients, its counts of right answers, and its timeline since the round before."""
    with comm.phase("log"):
        held = digest(adapter)
    lap = comm.lap()
    row = np.zeros(1, RANKS)
    row["round"], row["rank"], row["num_clients"] = number, comm.rank, len(clients)
    for phase, value in lap.seconds.items():
        row[f"{phase}_seconds"] = value
    row["round_seconds"], row["collective_bytes"], row["peak_memory_bytes"] = lap.total, lap.num_bytes, peak_memory_bytes()
    return RankReport(row, clients, correct, held, np.array(lap.collectives), before)


def peak_memory_bytes() -> int:
    """The largest resident set of this process so far (Linux's VmHWM, which a parent's size does not taint)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def digest(adapter: torch.Tensor) -> int:
    """64 bits of a hash of the adapter."""
    data = np.ascontiguousarray(adapter.cpu().numpy())  # hashed where it lies: it may be a whole CLIP
    return int.from_bytes(hashlib.blake2b(data.data, digest_size=8).digest(), "little", signed=True)
