"""Collectives as rounds use them, after the habits of the OSU benchmarks: powers of two, warm-up apart, fastest to slowest rank.

all ranks            every rank of the job
ranks of a node      all nodes at once, each by itself
one rank a node      what passes between nodes
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from flora_hpc.comm import cores
from flora_hpc.comm.communicator import Communicator
from flora_hpc.errors import UserError, did_you_mean

MOVED = 2**25  # bytes of all repeats of one size
FEWEST, MOST = 10, 100  # repeats
WARM_UP = 3
MOST_PAIRED = 64  # nodes of which each pair is measured
PAIR_BYTES = 2**20
Say = Callable[[str], None]


def allreduce(comm: Communicator, num_bytes: int) -> Callable[[], object]:
    """An exact sum of `num_bytes`, as of a round's updates."""
    buffer = np.zeros(num_bytes // 8, np.int64)
    return lambda: comm.allreduce(buffer)


def broadcast(comm: Communicator, num_bytes: int) -> Callable[[], object]:
    """Rank 0's adapter to all."""
    buffer = np.zeros(num_bytes // 8, np.int64)
    return lambda: comm.broadcast(buffer)


def gather(comm: Communicator, num_bytes: int) -> Callable[[], object]:
    """A report of `num_bytes` from every rank to rank 0."""
    data = bytes(num_bytes)
    return lambda: comm.gather(data)


def exchange(comm: Communicator, num_bytes: int) -> Callable[[], object]:
    """A message of `num_bytes` from every rank to every rank."""
    parts = [bytes(num_bytes)] * comm.size
    return lambda: comm.exchange(parts)


def barrier(comm: Communicator, num_bytes: int) -> Callable[[], object]:
    """All ranks meet; there are no bytes."""
    return comm.barrier


COLLECTIVES = {call.__name__: call for call in (allreduce, broadcast, gather, exchange, barrier)}


def find(text: str) -> list[str]:
    """The collectives in 'all' or in 'gather,barrier'. Raises UserError for an unknown name."""
    names = [*COLLECTIVES] if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in COLLECTIVES:
            choices = f"take all, or some of {', '.join(COLLECTIVES)}"
            raise UserError(f"--collectives: no collective '{name}'{did_you_mean(name, COLLECTIVES)}; {choices}")
    return names


def measure(comm: Communicator, names: Sequence[str], sizes: Sequence[int], repeats: int | None, say: Say) -> list[dict[str, Any]]:
    """Rows of seconds, on every rank, for each scope, collective and size (bytes, whole int64 numbers). All ranks call this."""
    rows = []
    for scope, part in scopes(comm):
        for name in names:
            say(f"{name}, {scope}")
            rows += [
                timed(comm, part, name, num_bytes, repeats) | {"scope": scope}
                for num_bytes in (sizes if name != "barrier" else [0])
            ]
    return rows


def scopes(comm: Communicator) -> Iterator[tuple[str, Communicator | None]]:
    """Each scope, and this rank's part in it; None for a rank without one. On one node there is only one scope."""
    yield "all ranks", comm
    nodes = [text.decode() for text in comm.allgather(cores.machine().encode())]
    names = list(dict.fromkeys(nodes))
    if len(names) == 1 or len(names) == comm.size:
        return
    own = comm.split(names.index(nodes[comm.rank]))
    first = own.rank == 0
    yield "ranks of a node", own
    own.close()
    leaders = comm.split(0 if first else 1)
    yield "one rank a node", leaders if first else None
    leaders.close()


def timed(world: Communicator, comm: Communicator | None, name: str, num_bytes: int, repeats: int | None) -> dict[str, Any]:
    """Fastest, median and slowest rank of one collective and size: each rank's mean over the repeats, as OSU counts.

    Before a repeat, ranks meet, which is not timed. Ranks without a part wait.
    """
    number = repeats or min(MOST, max(FEWEST, MOVED // max(1, num_bytes)))
    seconds: list[float] = []
    if comm is not None:
        call = COLLECTIVES[name](comm, num_bytes)
        for _ in range(WARM_UP + number):
            comm.barrier()
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    means = [json.loads(text) for text in world.allgather(json.dumps(seconds[WARM_UP:]).encode())]
    values = [float(np.mean(each)) for each in means if each]
    return {
        "what": name,
        "ranks": len(values),
        "bytes": num_bytes,
        "repeats": number,
        "min_seconds": min(values),
        "median_seconds": float(np.median(values)),
        "max_seconds": max(values),
    }


def pairings(count: int) -> list[list[tuple[int, int]]]:
    """All pairs of `count` nodes in rounds in which nobody is in two pairs: the circle method of tournaments."""
    seats: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    rounds = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        opposite = zip(seats[:half], reversed(seats[half:]), strict=True)
        rounds.append([(min(a, b), max(a, b)) for a, b in opposite if a is not None and b is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return rounds


def pairs(comm: Communicator, repeats: int | None, say: Say) -> dict[str, Any] | None:
    """Bytes a second of an allreduce of a mebibyte between each pair of nodes, or of ranks on one node; None for fewer than two.

    `bytes_per_second` (num_places, num_places) is symmetric; its diagonal is None. All ranks call this.
    """
    facts = [json.loads(text) for text in comm.allgather(json.dumps([cores.machine(), host()]).encode())]
    machines = list(dict.fromkeys(machine for machine, _ in facts))
    are_nodes = len(machines) > 1
    firsts = [[machine for machine, _ in facts].index(each) for each in machines] if are_nodes else [*range(comm.size)]
    firsts = firsts[:MOST_PAIRED]
    if len(firsts) < 2:
        return None
    say(f"{len(firsts)} {'nodes' if are_nodes else 'ranks'}, each pair")
    place = firsts.index(comm.rank) if comm.rank in firsts else None
    rates: list[list[float | None]] = [[None] * len(firsts) for _ in firsts]
    for at_once in pairings(len(firsts)):
        colour = next((number for number, pair in enumerate(at_once) if place in pair), len(at_once))
        part = comm.split(colour)
        row = timed_pair(part if colour < len(at_once) else None, repeats)
        part.close()
        for number, seconds in {
            (json.loads(text)[0], json.loads(text)[1]) for text in comm.allgather(json.dumps([colour, row]).encode())
        }:
            if number < len(at_once) and seconds:
                a, b = at_once[number]
                rates[a][b] = rates[b][a] = min(rates[a][b] or np.inf, PAIR_BYTES / seconds)
    names = [facts[first][1] if are_nodes else f"rank {first}" for first in firsts]
    return {"bytes": PAIR_BYTES, "names": names, "bytes_per_second": rates} | slowest(names, rates)


def host() -> str:
    """The name of this rank's machine."""
    return cores.machine().partition(" ")[0]


def timed_pair(part: Communicator | None, repeats: int | None) -> float:
    """The median seconds of an allreduce of two ranks; 0 for a rank without a partner."""
    if part is None:
        return 0.0
    buffer, seconds = np.zeros(PAIR_BYTES // 8, np.int64), []
    for _ in range(WARM_UP + (repeats or FEWEST)):
        part.barrier()
        start = time.perf_counter()
        part.allreduce(buffer)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[WARM_UP:]))


def slowest(names: Sequence[str], rates: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """The slowest pair, against the median of all pairs."""
    values = {(a, b): rate for a, row in enumerate(rates) for b, rate in enumerate(row) if a < b and rate is not None}
    a, b = min(values, key=lambda pair: values[pair])
    return {"slowest": [names[a], names[b]], "slowest_over_median": values[a, b] / float(np.median(list(values.values())))}
