"""Units of the world, nodes or ranks of one node, and the parts of the world that play beside each other."""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from flora_hpc.comm import cores, devices
from flora_hpc.comm.communicator import AgreedError, Communicator
from flora_hpc.comm.node import node

MEMORY_TOLERANCE = 0.05  # nodes of one kind differ by what their firmware keeps


@dataclass(frozen=True)
class Spot:
    """Where a rank works."""

    node: str  # identifier of its machine
    host: str
    local_rank: int
    cpu: str
    cores: int  # that the rank may use
    threads: int
    memory: int  # bytes of the node; 0 where it is unknown
    gpu: str  # model; empty for a rank that computes on the processor
    gpu_memory: int  # bytes of the rank's share of its GPU; 0 without one
    node_cores: int  # of the node, of which the rank may use a part
    load: float | None  # average of the node over the minute before the rank worked


def spots(
    world: Communicator, local_rank: int, device: torch.device, near: devices.Neighbours, load: float | None = None
) -> list[Spot]:
    """Every rank's spot, by rank, on every rank. All ranks call this; `load` is that of `quiet.load` at their start."""
    machine = node()
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    own = Spot(
        cores.machine(),
        socket.gethostname(),
        local_rank,
        machine.processor,
        len(os.sched_getaffinity(0)),
        near.num_threads,
        machine.memory_limit_bytes or machine.memory_bytes or 0,
        properties.name if properties else "",
        properties.total_memory // near.ranks_per_gpu if properties else 0,
        machine.num_cores,
        load,
    )
    return [Spot(**json.loads(text)) for text in world.allgather(json.dumps(asdict(own)).encode())]


@dataclass(frozen=True)
class Units:
    """The units of the world: nodes, or the ranks of one node."""

    spots: list[Spot]  # by rank

    @property
    def nodes(self) -> list[str]:
        """Identifiers of the nodes, in the order of their first ranks."""
        return list(dict.fromkeys(spot.node for spot in self.spots))

    @property
    def are_nodes(self) -> bool:
        """Whether a unit is a node."""
        return len(self.nodes) > 1

    @property
    def of_ranks(self) -> list[int]:
        """The number of each rank's unit."""
        if not self.are_nodes:
            return list(range(len(self.spots)))
        numbers = {name: number for number, name in enumerate(self.nodes)}
        return [numbers[spot.node] for spot in self.spots]

    @property
    def count(self) -> int:
        """The number of units."""
        return len(self.nodes) if self.are_nodes else len(self.spots)

    def name(self, unit: int) -> str:
        """The name of a unit for people: a host, or a rank."""
        return self.spots[self.of_ranks.index(unit)].host if self.are_nodes else f"rank {unit}"

    def rank_name(self, rank: int) -> str:
        """The name of a rank and its host."""
        return f"rank {rank} on {self.spots[rank].host}"

    def colour(self, rank: int, size: int) -> int | None:
        """The part in which a rank plays when each part has `size` units; None for a rank that is left over."""
        part = self.of_ranks[rank] // size
        return part if part < self.count // size else None

    def members(self, part: int, size: int) -> list[int]:
        """The ranks of the world in a part."""
        return [rank for rank in range(len(self.spots)) if self.colour(rank, size) == part]


def refuse_unlike(units: Units) -> None:
    """Raise AgreedError, on every rank, when nodes differ: the curve would compare machines, not sizes."""
    first, counts = units.spots[0], dict.fromkeys(units.nodes, 0)
    for spot in units.spots:
        counts[spot.node] += 1
    for spot in units.spots:
        facts = {
            "ranks": (counts[first.node], counts[spot.node]),
            "processor": (first.cpu, spot.cpu),
            "GPU": (first.gpu or "none", spot.gpu or "none"),
            "cores of a rank": (first.cores, spot.cores),
            "threads of a rank": (first.threads, spot.threads),
        }
        if abs(first.memory - spot.memory) > MEMORY_TOLERANCE * first.memory:
            facts["bytes of memory"] = (first.memory, spot.memory)
        for name, (one, other) in facts.items():
            if one != other:
                raise AgreedError(
                    f"bench cluster: the nodes are unlike: {name}: {one} on {first.host} and {other} on {spot.host}; "
                    "ask for nodes of one kind (sbatch --constraint), with as many ranks on each (--ntasks-per-node)"
                )


def sizes(count: int, smallest: int) -> list[int]:
    """Units of the parts in turn: powers of two and all `count`, from `smallest` or a quarter of all, whichever is less."""
    first = min(smallest, max(1, count // 4))
    powers: Sequence[int] = [2**power for power in range(count.bit_length()) if first < 2 ** (power + 1) and 2**power < count]
    return [*powers, count]
