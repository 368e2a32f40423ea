"""Drivers of a round's phases: the counts that the seconds of each phase grow with, for every rank, from shapes alone.

    batch    groups, clients and examples of the rank
    jacobian a rank's rows of the Jacobian, and those of others, where first steps use one; `/ranks` has it within train
    train    first steps, later steps of groups and of clients, examples
    sum      groups and clients
    server, rest    once a round
    eval     blocks of test images
    log      rows of clients that rank 0 writes
    comm     doublings of ranks on a node and of nodes, and the bytes that pass a rank

`wait` has no drivers: it is what the slowest rank makes the others wait.
"""

import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flora_hpc import firststep, footprint, trainer
from flora_hpc.data.images import Ints
from flora_hpc.data.inputs import Features, Pixels
from flora_hpc.records.schema import CLIENTS
from flora_hpc.round import groups_of_ranks
from flora_hpc.setup import Setup

Floats = npt.NDArray[np.float64]
OF_RANK = ("batch", "jacobian", "train", "sum")  # the work of every rank
OF_ROUND = ("comm", "server", "eval", "log", "rest")  # seen from rank 0; `rest` is what no phase covers, between two rounds
COLUMNS = {
    "batch": ("round", "groups", "clients", "examples"),
    "jacobian": ("Jacobian", "rows of others"),
    "train": (
        *("groups", "first steps", "first steps by Jacobian"),
        *("later steps of groups", "later steps", "examples"),
    ),
    "sum": ("round", "groups", "clients"),
    "comm": ("doublings of ranks", "doublings of nodes", "bytes in a node", "bytes between nodes"),
    "server": ("round",),
    "eval": ("blocks",),
    "log": ("round", "rows", "clients"),
    "rest": ("round",),
}


class Drivers(NamedTuple):
    """Drivers of one round. Every table is (num_ranks, number of columns), or (1, ...) for the phases of the round."""

    of: Mapping[str, Floats]  # phase -> its drivers, in the order of COLUMNS
    deal_seconds: float  # in which this process found the groups of one rank, as each rank does in every round
    num_clients: int
    num_groups: int


def of_round(setup: Setup, num_ranks: int, num_nodes: int = 1, number: int = 1) -> Drivers:
    """The drivers of round `number` on `num_ranks` ranks, equally many on each of `num_nodes` nodes."""
    started = time.perf_counter()
    groups_of_ranks(setup, num_ranks, number, [0])
    deal_seconds = time.perf_counter() - started
    by_rank = groups_of_ranks(setup, num_ranks, number)
    ranks = [_of_rank(setup, groups, rank, num_ranks) for rank, groups in enumerate(by_rank)]
    clients = setup.num_participants
    rows = clients if setup.most_client_rows is None else min(clients, setup.most_client_rows)
    tables = {phase: np.array([rank[phase] for rank in ranks]) for phase in OF_RANK}
    of_round = {
        "comm": comm(wire_bytes(setup, by_rank, number, rows), num_ranks, num_nodes),
        "server": [1],
        "eval": [_blocks(setup, num_ranks)],
        "log": [1, rows, clients],
        "rest": [1],
    }
    tables |= {phase: np.array([values], np.float64) for phase, values in of_round.items()}
    return Drivers(tables, deal_seconds, clients, sum(map(len, by_rank)))


def comm(num_bytes: float, num_ranks: int, num_nodes: int) -> list[float]:
    """The drivers of collectives in which `num_bytes` pass each rank."""
    on_node = -(-num_ranks // num_nodes)
    tier = [num_bytes, 0.0] if num_nodes == 1 else [0.0, num_bytes]
    return [float(np.log2(on_node)), float(np.log2(num_nodes)), *(tier if num_ranks > 1 else [0.0, 0.0])]


def wire_bytes(setup: Setup, by_rank: list[list[Ints]], number: int, rows: int) -> float:
    """About how many bytes pass rank 0 in a round: exact sums, a Jacobian, updates or factors of clients, and rows of reports."""
    num_ranks = len(by_rank)
    if num_ranks == 1:
        return 0.0
    clients = setup.schedule.clients(number)
    exchange, factors = footprint.exchange(setup, num_ranks), footprint.factors(setup, by_rank)
    return (
        2 * footprint.traffic(setup, clients, number).allreduce * (num_ranks - 1) / num_ranks
        + firststep.sent_bytes(setup.method, setup.by_jacobian, num_ranks)
        + (exchange.received if exchange else 0)
        + (factors.received if factors else 0)
        + CLIENTS.itemsize * rows * (num_ranks - 1) / num_ranks
    )


def _of_rank(setup: Setup, groups: list[Ints], rank: int, num_ranks: int) -> dict[str, list[float]]:
    """The drivers of the work of one rank, which trains `groups`."""
    costs, jacobian = setup.method.costs, [0.0, 0.0]
    if setup.by_jacobian:
        parts = costs.text_shape[0] * -(-costs.text_shape[1] // firststep.ROWS)
        own = len(range(rank, parts, num_ranks)) / parts
        jacobian = [own, 1 - own]
    if not groups:
        return {"batch": [1, 0, 0, 0], "jacobian": jacobian, "train": [0.0] * 6, "sum": [1, 0, 0]}
    counts = np.array([len(group) for group in groups])
    sizes = setup.holdings.sizes(np.concatenate(groups))
    steps = setup.client.epochs * -(-sizes // setup.client.batch_size)
    examples = setup.client.epochs * int(trainer.filled_up(sizes, setup.client, setup.padding_multiple).sum())
    longest = np.maximum.reduceat(steps, np.cumsum(counts) - counts)
    each, clients = not setup.by_jacobian, len(steps)
    train: list[float] = [len(groups), clients * each, clients * setup.by_jacobian]
    train += [int((longest - 1).sum()), int((steps - 1).sum()), examples]
    return {"batch": [1, len(groups), clients, examples], "jacobian": jacobian, "train": train, "sum": [1, len(groups), clients]}


def _blocks(setup: Setup, num_ranks: int) -> int:
    """The blocks of test and validation images that rank 0 tests."""
    block = Features.block if setup.method.sees == "features" else Pixels.block
    parts = (len(setup.test), len(setup.validation), len(setup.backdoor))
    return len(range(0, sum(-(-number // block) for number in parts), num_ranks))
