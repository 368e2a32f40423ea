"""Small worlds and plays with known numbers."""

from flora_hpc.bench.cluster.parts import Spot, Units
from flora_hpc.bench.cluster.play import Played
from flora_hpc.records.views import PHASES


def units_of(*hosts: str) -> Units:
    """A world whose ranks work on these hosts."""
    return Units([Spot(f"id {host}", host, 0, "Fast CPU", 8, 4, 64 * 10**9, "", 0, 16, 0.25) for host in hosts])


def one_node(num_ranks: int) -> Units:
    """A world of one node."""
    return units_of(*["n0"] * num_ranks)


def played(ranks: list[int], digests: str = "abc", seconds: tuple[float, ...] = (2.0, 4.0), **more: object) -> Played:
    """A part of the world whose rounds had these digests, a letter each, and took so long."""
    values: dict[str, object] = {
        "ranks": ranks,
        "digests": list(digests),
        "seconds": list(seconds),
        "phases": {phase: [value / 2 if phase == "train" else 0.0 for value in seconds] for phase in PHASES},
        "work_seconds": [1.0 + rank for rank in ranks],
        "num_clients": 12,
        "num_rejected": 0,
        "accuracy": 0.9,
        "peak_memory_bytes": 100,
    }
    return Played(**(values | more))  # type: ignore[arg-type]
