"""Bytes: what a federation would send, and what ranks handed to collectives. Never in one picture."""

import numpy as np
from matplotlib.figure import Figure

from flora_hpc.records.opened import Run
from flora_hpc.report import columns
from flora_hpc.report.style import BLUE, HALF, ORANGE, PURPLE, NothingError, Numbers, bytes_unit, new, round_stretches, rounds_axis

MOST_STEPS = 300


def federation(run: Run) -> Figure:
    """Uplink upwards and downlink downwards, of each round and in total."""
    rows = columns.rounds(run)
    up, down = rows["uplink_bytes"], rows["downlink_bytes"]
    if not (up.any() or down.any()):
        raise NothingError("No client has sent or received anything.")
    return _two(rows["round"], {"up": (up, BLUE, 1), "down": (down, ORANGE, -1)})


def collectives(run: Run) -> Figure:
    """What all ranks together handed to collectives, of each round and in total."""
    rows = columns.rounds(run)
    if not rows["collective_bytes"].any():
        raise NothingError("No rank has handed anything to a collective.")
    return _two(rows["round"], {"": (rows["collective_bytes"], PURPLE, 1)})


def _two(rounds: Numbers, parts: dict[str, tuple[Numbers, str, int]]) -> Figure:
    """Steps of each round above, and their sum so far below; parts with sign -1 go down from zero."""
    figure, (each, total) = new(HALF, 3.9, 2, sharex=True)
    starts = round_stretches(rounds, MOST_STEPS)
    edges = np.append(rounds[starts], rounds[-1] + 1) - 0.5
    width = np.diff(np.append(starts, len(rounds)))
    for axes, sums, label in ((each, False, "per round"), (total, True, "in total")):
        drawn = {
            name: np.cumsum(values)[np.append(starts[1:], len(rounds)) - 1] if sums else np.add.reduceat(values, starts) / width
            for name, (values, _, _) in parts.items()
        }
        unit, unit_name = bytes_unit(float(max(values.max() for values in drawn.values())))
        for name, (_, colour, sign) in parts.items():
            axes.stairs(sign * drawn[name] / unit, edges, fill=True, color=colour, alpha=0.85, linewidth=0)
            if name:
                where = 0.96 if sign > 0 else 0.04
                axes.text(
                    0.015, where, name, transform=axes.transAxes, color=colour, va="top" if sign > 0 else "bottom", weight="bold"
                )
        if len(parts) > 1:
            axes.axhline(0, linewidth=0.7, color=axes.spines["left"].get_edgecolor())
            most = 1.35 * max(values.max() for values in drawn.values()) / unit
            axes.set_ylim(-most, most)
            axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        axes.set_ylabel(f"{label} ({unit_name})")
    rounds_axis(total, rounds)
    figure.align_ylabels()
    return figure
