"""Whether the machine was quiet while it was measured: the load before the ranks worked, and repeats that differ."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from flora_hpc.records.views import count

BUSY = 1.2  # upper over lower quartile of repeats; on an idle machine they are alike
BUSY_LOAD = 0.5  # processes that run or wait, a core; a start of Python on every core adds 1 - exp(-seconds / 60)
MOST_NAMES = 4


def load() -> float | None:
    """The machine's load average over one minute; None where the system has none."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def warnings(curve: Sequence[Mapping[str, Any]], nodes: Sequence[Mapping[str, Any]], unit: str) -> list[str]:
    """Sentences on a cluster benchmark whose machine was busy, from its rows by size and its nodes; empty for a quiet one."""
    spread = {
        count(row["units"], unit): row["round_seconds"]["high"] / row["round_seconds"]["low"]
        for row in curve
        if row["round_seconds"]["low"] > 0
    }
    return loaded(nodes) + unsteady(spread)


def loaded(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence on nodes that worked for others when the benchmark began, the busiest first; none for quiet nodes."""
    busy = [node for node in nodes if (node["load"] or 0) > BUSY_LOAD * node["cores"]]
    busy.sort(key=lambda node: -node["load"] / node["cores"])
    if not busy:
        return []
    names = ", ".join(f"{node['load']:.1f} on {count(node['cores'], 'core')} of {node['host']}" for node in busy[:MOST_NAMES])
    more = f" and {count(len(busy) - MOST_NAMES, 'more node')}" if len(busy) > MOST_NAMES else ""
    return [f"load before the start: {names}{more}: other work took a share of the machine; measure again when it is quiet"]


def unsteady(spread: Mapping[str, float]) -> list[str]:
    """A sentence on repeats that differ more than on a quiet machine (name -> highest over lowest); none where none do."""
    busy = [f"{name} {factor:.2g} times" for name, factor in spread.items() if factor > BUSY]
    return [f"repeats differ ({', '.join(busy)}): the machine was busy; measure again when it is quiet"] if busy else []
