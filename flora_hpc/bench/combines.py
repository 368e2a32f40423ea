"""Seconds and memory of the combine parts of algorithms: what a round takes beyond training to make one direction of all updates.

Updates are random, of the clients of a round, as local training would send them. All ranks take part, as in a run. One repeat adds
the updates of this rank's clients up, or collects them, and computes the direction and new factors, where the algorithm makes such.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from flora_hpc import api, assembly, groups, lowrank, plugins, products, rows
from flora_hpc.algorithms._algorithm import Combine, Now, Setting
from flora_hpc.bench.methods import processor
from flora_hpc.comm.communicator import Communicator
from flora_hpc.comm.meter import Meter
from flora_hpc.data.images import Ints
from flora_hpc.errors import UserError
from flora_hpc.exact import ExactSums
from flora_hpc.federation import Federation
from flora_hpc.methods._lora import layers_of
from flora_hpc.methods._method import Method
from flora_hpc.products import Sums
from flora_hpc.round import peak_memory_bytes
from flora_hpc.versions import versions

GROUP = 64  # clients whose updates arrive at once


@dataclass(frozen=True)
class Task:
    """The settings of the measurement: low-rank adapters on equal square layers."""

    clients: int
    layers: int
    width: int
    rank: int
    repeats: int


def measure(comm: Communicator, names: Sequence[str], task: Task, progress: Callable[[str], None]) -> dict[str, Any]:
    """Time each algorithm of `names`. All ranks call this and get the same result. Raises UserError for unknown names."""
    method = adapters(task)
    federations = {name: federation(name, method, task) for name in names}
    results = {}
    for name, parts in federations.items():
        progress(f"{name}, {task.clients:,} clients, {task.repeats} times")
        meter, seconds = Meter(comm), []
        for _ in range(task.repeats):
            comm.barrier()
            started = meter.clock()
            play(meter, parts, method, task)
            comm.barrier()
            seconds.append(meter.clock() - started)
        peaks = [int(np.frombuffer(data, np.int64)[0]) for data in comm.allgather(np.int64(peak_memory_bytes()).tobytes())]
        results[name] = {"seconds": statistics.median(seconds), "repeat_seconds": seconds, "peak_memory_bytes": max(peaks)}
    return {
        **asdict(task),
        "num_params": method.num_params,
        "backend": comm.name,
        "world_size": comm.size,
        "device": "cpu",
        "num_threads": torch.get_num_threads(),
        "processor": processor(),
        "versions": versions(),
        "algorithms": results,
    }


def adapters(task: Task) -> Method:
    """A method that has the shapes of low-rank adapters, and nothing else."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(task.layers):
        shapes |= {f"layer{number}.lora_A": (task.rank, task.width), f"layer{number}.lora_B": (task.width, task.rank)}

    def nothing(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("nothing is trained")

    return Method(shapes, nothing, nothing, nothing, how="shapes", layers=layers_of(shapes, 1.0), merge=lambda matrices: None)


def federation(name: str, method: Method, task: Task) -> Federation:
    """The parts of a round of one algorithm. Raises UserError for an algorithm whose combine part is FedAvg's, or unknown."""
    config = api.load_config({"algorithm": name, "method": {"name": "flora", "rank": task.rank}})
    setting = Setting(config.client, tuple(method.shapes), False, task.clients)
    own = plugins.member("algorithms", name)
    if name != "fedavg" and own.build(own.Options(name=name), setting).combine is None:
        raise UserError(f"--algorithms: {name} has no combine part of its own; take fedavg instead")
    parts = assembly.build(config, method, setting)
    if parts.rule is not None and (fault := parts.rule.fault(task.clients)) is not None:
        raise UserError(f"--clients: {fault}")
    return parts


def updates_of(task: Task, width: int, rank: int, size: int) -> Iterator[tuple[Ints, torch.Tensor]]:
    """The clients (n,) of a rank, and random updates (n, width) float32, a group at a time."""
    own = np.arange(rank, task.clients, size)
    generator = torch.Generator().manual_seed(rank)
    for start in range(0, len(own), GROUP):
        clients = own[start : start + GROUP]
        yield clients, torch.randn(len(clients), width, generator=generator).mul_(1e-3)


def play(comm: Meter, parts: Federation, method: Method, task: Task) -> torch.Tensor:
    """Combine the updates of all clients once, as a round does: the direction (num_sent,)."""
    roles, combine = parts.roles_in(1), parts.combine
    arriving = updates_of(task, len(roles.shared), comm.rank, comm.size)
    if parts.rule is not None:
        collected = rows.Updates(len(roles.shared))
        for clients, updates in arriving:
            collected.add(clients, updates)
        return rows.combine(comm, collected, parts.rule)
    assert isinstance(combine, Combine)
    adapter = torch.zeros(method.num_params)
    sums = ExactSums(parts.channels(1))
    of_products = products.sums_of(method, roles, task.clients) if combine.replaces else None
    for clients, updates in arriving:
        add(sums, of_products, parts, method, clients, updates)
    comm.allreduce(sums.buffer)
    means = sums.means()
    direction = combine.finish(means, Now(1, sums.num_clients, task.clients, sums.total("update"), means))
    if of_products is not None:
        of_products.collect(comm)
        products.combine(comm, combine, of_products, sums, adapter, adapter if combine.fresh else None)
    return direction


def add(sums: ExactSums, of_products: Sums | None, parts: Federation, method: Method, clients: Ints, updates: torch.Tensor) -> None:
    """Add the updates (n, num_sent) of a group of `clients` (n,) with 100 examples each."""
    weights = parts.combine.weights(torch.full((len(updates),), 100))
    adapter, num_steps = torch.zeros(method.num_params), torch.ones(len(updates), 1)
    prepared, _ = groups.to_add(method, parts, parts.roles_in(1), adapter, updates, num_steps)
    fits = None if of_products is None else lowrank.fits(of_products.places, updates, weights)
    accepted = sums.add(prepared, dict.fromkeys(prepared, weights), mask=fits)
    if of_products is not None:
        of_products.add(clients, updates, weights, accepted)
