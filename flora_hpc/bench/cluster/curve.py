"""The numbers of a benchmark: updates a second and efficiency by size, with intervals; where the time goes; who is slow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flora_hpc import seeds
from flora_hpc.bench.cluster.parts import Units
from flora_hpc.bench.cluster.play import Played

Floats = npt.NDArray[np.float64]
RESAMPLES = 2_000
LOW, HIGH = 0.025, 0.975  # quantiles of a 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def medians(seconds: Sequence[float], name: str) -> Floats:
    """Medians (RESAMPLES,) of seconds drawn again with replacement: the bootstrap's idea of what another run would give."""
    values = np.asarray(seconds, np.float64)
    draws = seeds.generator(0, f"bench bootstrap {name}").integers(len(values), size=(RESAMPLES, len(values)))
    result: Floats = np.median(values[draws], axis=1)
    return result


def estimate(value: float, samples: Floats) -> Estimate:
    """A value, and the interval of its bootstrap samples."""
    low, high = np.quantile(samples, [LOW, HIGH]).tolist()
    return Estimate(value, low, high)


def curve(plays: Mapping[int, Sequence[Played]], units: Units) -> list[dict[str, Any]]:
    """One row for each size: seconds of a round, client updates a second of one part, efficiency against the smallest size."""
    first = min(plays)
    rate, rates = {}, {}
    for size, parts in plays.items():
        pooled = [value for part in parts for value in part.seconds]
        rate[size] = parts[0].num_clients / float(np.median(pooled))
        rates[size] = parts[0].num_clients / medians(pooled, f"{size}")
    rows = []
    for size, parts in sorted(plays.items()):
        pooled = [value for part in parts for value in part.seconds]
        scale = first / size
        slowest = max(parts, key=lambda part: float(np.median(part.seconds)))
        rows.append(
            {
                "units": size,
                "ranks": len(parts[0].ranks),
                "parts": len(parts),
                "clients": parts[0].num_clients,
                "round_seconds": quartiles(pooled),
                "client_updates_per_second": estimate(rate[size], rates[size]).__dict__,
                "speedup": rate[size] / rate[first],
                "efficiency": estimate(scale * rate[size] / rate[first], scale * rates[size] / rates[first]).__dict__
                if size != first
                else Estimate(1.0, 1.0, 1.0).__dict__,
                "slowest_part": sorted({units.name(units.of_ranks[rank]) for rank in slowest.ranks}),
                "slowest_over_median": float(np.median(slowest.seconds) / np.median(pooled)),
                "repeat_round_seconds": [part.seconds for part in parts],
            }
        )
    return rows


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"median": middle, "low": low, "high": high}


def phases(part: Played) -> dict[str, dict[str, float]]:
    """Median and quartiles of the seconds of each phase, and of the rest, and the share of each median in their sum."""
    rest = np.asarray(part.seconds) - np.sum([part.phases[phase] for phase in part.phases], axis=0)
    rows = {name: quartiles(values) for name, values in (part.phases | {"rest": rest.tolist()}).items()}
    total = sum(row["median"] for row in rows.values())
    return {name: row | {"share": row["median"] / total} for name, row in rows.items()}


def slow(part: Played, units: Units) -> dict[str, Any]:
    """The rank and the node that work longest in a round, against the median of those with clients, and every node's seconds.

    Rank and node are None where nobody's work took time that a clock shows.
    """
    work = np.asarray(part.work_seconds, np.float64)
    by_node: dict[str, list[float]] = {}
    for rank, seconds in zip(part.ranks, part.work_seconds, strict=True):
        by_node.setdefault(units.spots[rank].host, []).append(seconds)
    nodes = {host: median_of_busy(values) for host, values in by_node.items()}
    if not median_of_busy(part.work_seconds):
        return {"rank": None, "node": None, "node_work_seconds": nodes}
    worst, slowest = int(work.argmax()), max(nodes, key=lambda host: nodes[host])
    return {
        "rank": {"name": units.rank_name(part.ranks[worst]), "over_median": float(work[worst]) / median_of_busy(part.work_seconds)},
        "node": {"name": slowest, "over_median": nodes[slowest] / median_of_busy([*nodes.values()])},
        "node_work_seconds": nodes,
    }


def median_of_busy(seconds: Sequence[float]) -> float:
    """The median of those that worked at all; 0 where nobody did."""
    busy = [value for value in seconds if value > 0]
    return float(np.median(busy)) if busy else 0.0
