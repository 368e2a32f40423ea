"""How many cores each rank may use, and whether there are fewer cores than ranks."""

import json
import os
import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flora_hpc.comm import quota
from flora_hpc.comm.communicator import Communicator


class Place(NamedTuple):
    """Where a rank computes: its machine, its cores, and the cores that control groups grant, by group."""

    machine: str
    cores: list[int]
    quotas: dict[str, float]


def machine() -> str:
    """An identifier of this machine: host name and boot id, since containers on different nodes may have one host name."""
    return f"{socket.gethostname()} {quota.text_of(Path('/proc/sys/kernel/random/boot_id'))}"


def here() -> Place:
    """The place of this rank."""
    return Place(machine(), sorted(os.sched_getaffinity(0)), quota.quotas())


def places(comm: Communicator, own: Place) -> list[Place]:
    """The place of every rank of `comm`, on every rank, from each rank's `own`. All ranks call this."""
    return [Place(*json.loads(text)) for text in comm.allgather(json.dumps(own).encode())]


def share(places: Sequence[Place], own: Place) -> float:
    """Cores of a rank: its `own` ones, divided by the number of ranks with the same ones, but no more than its share of a quota.

    A launcher that binds ranks gives each rank its own cores. Otherwise all ranks of a node have the same cores.
    """
    num_sharing = sum(each.machine == own.machine and each.cores == own.cores for each in places)
    limit = quota.share(own.machine, [(each.machine, each.quotas) for each in places], own.quotas)
    return len(own.cores) / num_sharing if limit is None else min(len(own.cores) / num_sharing, limit)


def crowded(places: Sequence[Place]) -> bool:
    """Whether some rank has less than one core for itself. Then a rank that waits should sleep: others need the core."""
    granted = {(each.machine, *each.cores): float(len(each.cores)) for each in places}
    granted |= {(each.machine, group): cores for each in places for group, cores in each.quotas.items()}
    users = Counter((each.machine, *each.cores) for each in places)
    users.update((each.machine, group) for each in places for group in each.quotas)
    return any(cores < users[key] for key, cores in granted.items())
