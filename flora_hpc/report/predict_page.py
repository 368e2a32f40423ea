"""The page of `flora-hpc predict`: seconds of a round by nodes and clients. `predict.html` is its template."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Picture
from rich.filesize import decimal

from flora_hpc.records.views import count, seconds
from flora_hpc.report import svg, template
from flora_hpc.report.page import Figure
from flora_hpc.report.style import WIDE, line_style, new, styled

BAND = 0.14  # density of a band
TEXT = "Lines and bands (95 %) are predicted. Dots are measured rounds. Both axes are logarithmic."
Point = Mapping[str, Any]


def make(grid: Mapping[str, Any], result: Mapping[str, Any], name: str) -> str:
    """The page of a grid of points, and of the one prediction that was asked for."""
    rows = by_clients(grid["points"])
    warnings = dict.fromkeys(text for each in grid["points"] for text in each["warnings"])
    with styled():
        title = "Seconds of a round"
        figures = [Figure("rounds", "wide", title, TEXT, svg.inline(draw(rows), "rounds", title))] if rows else []
    return template.render(
        "predict.html",
        heading=f"Predicted: {name}",
        headlines=headlines(result),
        sections={"By nodes and clients of a round": figures},
        nodes=[f"{each['nodes']:,}" for each in next(iter(rows.values()), [])],
        rounds={clients: [cell(each) for each in points] for clients, points in rows.items()},
        dominating={clients: [each["dominating"] for each in points] for clients, points in rows.items()},
        warnings=[*warnings],
        left_out={f"{clients:,}": text for clients, text in grid["left_out"].items()},
        result=result,
    )


def by_clients(points: Sequence[Point]) -> dict[int, list[Point]]:
    """The points of each number of clients, by their nodes."""
    return {
        clients: [each for each in points if each["clients"] == clients] for clients in sorted({each["clients"] for each in points})
    }


def draw(rows: Mapping[int, Sequence[Point]]) -> Picture:
    """A line with its band for each number of clients, and dots for rounds that were measured."""
    figure, axes = new(WIDE, 4.2)
    for number, (clients, points) in enumerate(rows.items()):
        style, nodes = line_style(number), np.array([each["nodes"] for each in points])
        axes.fill_between(
            nodes,
            *(np.array([each[end] for each in points]) for end in ("low", "high")),
            color=style["color"],
            alpha=BAND,
            linewidth=0,
        )
        axes.plot(nodes, [each["value"] for each in points], label=f"{clients:,} clients", **style)
        dots = [(each["nodes"], each["measured"]) for each in points if each["measured"] is not None]
        if dots:
            axes.plot(*zip(*dots, strict=True), linestyle="none", marker="o", markersize=6, color=style["color"])
    ticks = sorted({each["nodes"] for points in rows.values() for each in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{each:,}" for each in ticks])
    axes.minorticks_off()
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")  # powers of ten would be formulas, which pages do not draw
    axes.yaxis.set_minor_formatter("")
    axes.set_xlabel("nodes")
    axes.set_ylabel("seconds of a round")
    axes.legend(loc="upper right", ncols=2)
    return figure


def cell(each: Point) -> str:
    """Seconds of a round: predicted, and measured where they were."""
    return seconds(each["value"]) + ("" if each["measured"] is None else f"\n{seconds(each['measured'])} measured")


def headlines(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What stands in the boxes: name, value, remark."""
    whole, total, up_to = result["round_seconds"], result["total_seconds"], result["measured_up_to"]
    where = f"{count(result['clients'], 'client')} on {count(result['nodes'], 'node')}, predicted"
    hours, unit = ("gpu_hours", "GPU hours") if result["gpus_per_node"] else ("node_hours", "node hours")
    return [
        ("A round", seconds(whole["value"]), f"{where}; 95 %: {seconds(whole['low'])} to {seconds(whole['high'])}"),
        (
            "A run",
            seconds(total["value"]),
            f"{count(result['rounds'], 'round')}; {result[hours]['value']:.3g} {unit}",
        ),
        (
            "Most of it",
            result["dominating"],
            f"log {decimal(result['log_bytes'])}, {decimal(result['memory_bytes_of_rank'])} a rank",
        ),
        ("Measured", f"up to {count(up_to['ranks'], 'rank')}", f"and {count(up_to['clients'], 'client')} a round"),
    ]
