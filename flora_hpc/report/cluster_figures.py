"""Figures of a cluster benchmark: updates a second and efficiency by size, seconds of work by node."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flora_hpc.report.style import BLUE, DENSE_BLUE, GREY, HALF, INK, ORANGE, new, shade_key, shades

MOST_BARS = 64  # nodes with a bar each; more are drawn as a line of sorted values


def curve(result: Mapping[str, Any]) -> Figure:
    """Client updates a second by size, with intervals, beside what the smallest size would give without any loss."""
    figure, axes = new(HALF, 2.6)
    rows = result["curve"]
    units = np.array([row["units"] for row in rows])
    rates = [row["client_updates_per_second"] for row in rows]
    ideal = rates[0]["value"] * units / units[0]
    axes.plot(units, ideal, color=GREY, linewidth=1, linestyle=(0, (4, 2)), label="no loss")
    values = np.array([rate["value"] for rate in rates])
    spread = np.abs(np.array([[rate["low"], rate["high"]] for rate in rates]).T - values)
    axes.errorbar(units, values, spread, color=BLUE, marker="o", markersize=4, capsize=3, label="measured, 95 % interval")
    axes.set_xscale("log", base=2)
    axes.set_xticks(units, [str(unit) for unit in units])
    axes.minorticks_off()
    axes.set_ylim(0, 1.08 * max(ideal[-1], values.max()))
    axes.set_xlabel(f"{result['unit']}s")
    axes.set_ylabel("client updates a second")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="upper left")
    return figure


def efficiency(result: Mapping[str, Any]) -> Figure:
    """Efficiency by size with intervals."""
    figure, axes = new(HALF, 2.6)
    rows = result["curve"]
    units, values = [row["units"] for row in rows], [row["efficiency"] for row in rows]
    middle = np.array([each["value"] for each in values])
    spread = np.abs(np.array([[each["low"], each["high"]] for each in values]).T - middle)
    axes.axhline(100, color=GREY, linewidth=1, linestyle=(0, (4, 2)))
    axes.errorbar(units, 100 * middle, 100 * spread, color=ORANGE, marker="o", markersize=4, capsize=3)
    for unit, value in zip(units, middle, strict=True):
        axes.annotate(f"{value:.0%}", (unit, 100 * value), textcoords="offset points", xytext=(7, 5), color=INK)
    axes.set_xscale("log", base=2)
    axes.set_xticks(units, [str(unit) for unit in units])
    axes.minorticks_off()
    axes.margins(x=0.15)
    axes.set_ylim(0, max(112.0, 105 * max(each["high"] for each in values)))
    axes.set_xlabel(f"{result['unit']}s")
    axes.set_ylabel("% of the smallest size's rate")
    return figure


def pairs(result: Mapping[str, Any]) -> Figure:
    """Rates between each pair of nodes as a heat map: a slow link is a pale cross."""
    figure, axes = new(HALF, 2.6)
    table = result["pairs"]
    rates = np.array([[np.nan if rate is None else rate for rate in row] for row in table["bytes_per_second"]], np.float64)
    most, count = float(np.nanmax(rates)), len(rates)
    axes.imshow(shades(rates / most, DENSE_BLUE), interpolation="nearest", extent=(-0.5, count - 0.5, count - 0.5, -0.5))
    step = max(1, count // 8)
    axes.set_xticks(np.arange(0, count, step), table["names"][::step], rotation=45, ha="right")
    axes.set_yticks(np.arange(0, count, step), table["names"][::step])
    axes.grid(False)
    shade_key(axes, 1.0, DENSE_BLUE, f"% of {most / 1e9:.3g} GB/s")
    return figure


def nodes(result: Mapping[str, Any]) -> Figure:
    """Seconds of work of each node in a round: a slow one stands out."""
    figure, axes = new(HALF, 2.6)
    seconds = result["slowest"]["node_work_seconds"]
    values = np.array([*seconds.values()])
    if len(values) <= MOST_BARS:
        axes.bar(np.arange(len(values)), values, color=BLUE, width=0.7)
        step = max(1, len(values) // 6)
        axes.set_xticks(np.arange(0, len(values), step), [*seconds][::step])
    else:
        axes.plot(np.sort(values), color=BLUE)
        axes.set_xlabel("nodes, by their seconds")
    axes.axhline(float(np.median(values[values > 0])), color=GREY, linewidth=1, linestyle=(0, (4, 2)))
    axes.set_ylabel("seconds of work")
    axes.set_ylim(0, 1.1 * values.max())
    return figure
