"""One round of federated learning, as every rank plays it.

every rank holds the same adapter and server state
    cohort -> groups of clients -> my groups          the same answer on every rank, nothing is sent
    each group trains; its weighted updates are added to a running sum
    the sum is added up over ranks                    one allreduce, exact
    the server's rule makes the next adapter          on every rank, sent to none
    reports go to rank 0, which makes the record
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from flora_hpc import cohort, evaluate, optimizers, trainer
from flora_hpc.aggregators._aggregator import Aggregator
from flora_hpc.comm.exact import ExactSum
from flora_hpc.comm.meter import Meter
from flora_hpc.config import ClientConfig, CohortConfig, EvaluateConfig
from flora_hpc.data.images import Ints
from flora_hpc.data.inputs import Features, Inputs
from flora_hpc.data.shards import Shards
from flora_hpc.evaluate import Mixes
from flora_hpc.methods._method import Method
from flora_hpc.records.known import RankReport, RoundRecord, merge
from flora_hpc.records.schema import CLIENTS, RANKS, Rows


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
    group_size: int
    labels: torch.Tensor  # (num_images,) int64, on this rank's device
    test: torch.Tensor  # rows (num_test_images,) int64 of the images, on this rank's device
    mixes: Mixes | None = None  # of clients that are tested on their own, on rank 0
    inputs: Inputs = field(default_factory=lambda: Features(torch.empty(0, 0)))  # what the method sees of all images


@dataclass
class State:
    """What a round changes. Every rank holds the same adapter and server state; optimizer states stay with their rank."""

    adapter: torch.Tensor  # (num_params,) float32
    server: Any
    optimizers: dict[int, optimizers.State]  # by group; empty unless client.optimizer_state is 'keep'


def play(fed: Federation, comm: Meter, state: State, number: int) -> RoundRecord | None:
    """Play round `number` (0 only evaluates) and move `state` on. Returns the record on rank 0, None elsewhere."""
    rows = np.zeros(0, CLIENTS)
    if number > 0:
        with comm.phase("train"):
            total, rows = train_my_groups(fed, comm, state, number)
        comm.allreduce(total.buffer)
        with comm.phase("server"):
            if total.total:
                mean = total.mean().to(state.adapter.device)
                state.adapter, state.server = fed.aggregator.apply(state.adapter, mean, state.server)
    correct = np.zeros(0, np.int64)
    if number % fed.evaluate.every == 0 or number == fed.rounds:
        with comm.phase("eval"):
            correct = evaluate.count_correct(fed.method, state.adapter, fed.inputs, fed.labels, fed.test, comm.rank, comm.size)
    report = RankReport(rank_row(comm, number, len(rows)), rows, correct, digest(state.adapter))
    reports = comm.gather(report.to_bytes())
    if reports is None:
        return None
    told = [RankReport.from_bytes(data) for data in reports]
    record = merge(number, told, len(fed.test))
    if fed.mixes is not None and len(correct):
        fed.mixes.note(record.row, sum_of([report.correct for report in told]))
    return record


def train_my_groups(fed: Federation, comm: Meter, state: State, number: int) -> tuple[ExactSum, Rows]:
    """Train the groups that fall to this rank: their exact weighted sum, and one row per client."""
    clients = cohort.sample(fed.cohort, fed.shards.num_clients, fed.seed, number)
    groups = cohort.make_groups(clients, fed.shards.sizes(clients), fed.group_size)
    total, rows = ExactSum(fed.method.num_params), [np.zeros(0, CLIENTS)]
    for index in cohort.assign([cost(fed, group) for group in groups], comm.size)[comm.rank]:
        members, started = groups[index], comm.clock()
        held = fed.method.holds(members).to(state.adapter.device) if fed.method.holds else None
        batches = trainer.make_batches(members, fed.shards, fed.client, fed.seed, number)
        result = trainer.train(
            fed.method,
            state.adapter,
            batches,
            fed.inputs,
            fed.labels,
            fed.client,
            held,
            state.optimizers.get(index),
        )
        weights = fed.shards.sizes(members)
        kept = total.add(result.updates, torch.from_numpy(weights))
        if fed.client.optimizer_state == "keep":
            optimizers.forget(result.optimizer, ~kept)
            state.optimizers[index] = result.optimizer
        row = np.zeros(len(members), CLIENTS)
        row["round"], row["client"], row["rank"], row["group"] = number, members, comm.rank, index
        row["num_examples"], row["num_steps"], row["weight"] = weights, result.num_steps, weights * kept.numpy()
        row["train_loss"], row["update_norm"] = result.losses.cpu(), norms(result.updates, held)
        row["uplink_bytes"] = row["downlink_bytes"] = fed.method.bytes_of(members)
        row["train_seconds"] = (comm.clock() - started) * result.num_steps / result.num_steps.sum()
        rows.append(row)
    return total, np.concatenate(rows)


def sum_of(counts: list[Ints]) -> Ints:
    """The sum of counts of classes, of which some lists end before the others."""
    total = np.zeros(max(map(len, counts)), np.int64)
    for part in counts:
        total[: len(part)] += part
    return total


def norms(updates: torch.Tensor, held: torch.Tensor | None) -> torch.Tensor:
    """Length of what each client trained (num_clients,) float32; numbers that it does not hold have not been trained."""
    lengths: torch.Tensor = (updates if held is None else updates * held).norm(dim=1)
    return lengths.cpu()


def cost(fed: Federation, group: Ints) -> int:
    """How long a group takes to train, in client steps."""
    longest = int(fed.shards.sizes(group).max())
    return fed.client.epochs * -(-longest // fed.client.batch_size) * len(group)


def rank_row(comm: Meter, number: int, num_clients: int) -> Rows:
    """This rank's row of /ranks: its timeline since the round before."""
    seconds, total, num_bytes = comm.lap()
    row = np.zeros(1, RANKS)
    row["round"], row["rank"], row["num_clients"] = number, comm.rank, num_clients
    for phase, value in seconds.items():
        row[f"{phase}_seconds"] = value
    row["round_seconds"], row["collective_bytes"], row["peak_memory_bytes"] = total, num_bytes, peak_memory_bytes()
    return row


def peak_memory_bytes() -> int:
    """The largest resident set of this process so far (Linux's VmHWM, which a parent's size does not taint)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def digest(adapter: torch.Tensor) -> int:
    """64 bits of a hash of the adapter."""
    data = np.ascontiguousarray(adapter.cpu().numpy())  # hashed where it lies: it may be a whole CLIP
    return int.from_bytes(hashlib.blake2b(data.data, digest_size=8).digest(), "little", signed=True)
