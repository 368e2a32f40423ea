"""Figures of accuracy and loss, of one run or several, by round, bytes and seconds."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flora_hpc.records import views
from flora_hpc.records.opened import Run
from flora_hpc.report import columns
from flora_hpc.report.style import (
    GREEN,
    HALF,
    MOST_POINTS,
    ORANGE,
    NothingError,
    Numbers,
    bytes_unit,
    legend_below,
    line_style,
    new,
    percent_axis,
    rounds_axis,
    seconds_unit,
    thinned,
)  # fmt: skip

UNTESTED = "No round was evaluated."
MOST_IN_LEGEND = 24
ALL_DOTS = 40  # rounds up to which each one gets a dot


def accuracy(runs: Sequence[Run]) -> Figure:
    """Test accuracy after each round that was evaluated."""
    figure, axes = new(*_size(runs))
    _curves(
        axes,
        runs,
        lambda run: views.accuracies(columns.rounds(run))["round"],
        lambda run: views.accuracies(columns.rounds(run))["test_accuracy"],
        UNTESTED,
    )
    values = np.concatenate([views.accuracies(columns.rounds(run))["test_accuracy"] for run in runs])
    more = [*_validation(axes, runs[0]), *_clients(axes, runs[0])] if len(runs) == 1 else []
    if more:
        values = np.concatenate([values, *more])
        legend_below(axes, 2)
    rounds_axis(axes, np.concatenate([columns.rounds(run)["round"] for run in runs]))
    percent_axis(axes, values)
    axes.set_ylabel("test accuracy (%)")
    return figure


def _validation(axes: Axes, run: Run) -> list[Numbers]:
    """Draw the validation accuracy of a run. Returns what was drawn."""
    rows = views.validations(columns.rounds(run))
    if not len(rows):
        return []
    axes.plot(rows["round"], rows["validation_accuracy"], color=ORANGE, linestyle=(0, (5, 1.6)), label="validation images")
    return [rows["validation_accuracy"]]


def _clients(axes: Axes, run: Run) -> list[Numbers]:
    """Draw the accuracies of clients that were tested on their own. Returns what was drawn."""
    rows = columns.rounds(run)
    if not views.per_client(rows):
        return []
    clients = rows[rows["worst_client"] >= 0]
    mean, std = clients["client_accuracy_mean"], clients["client_accuracy_std"]
    low, high = np.maximum(mean - std, clients["client_accuracy_min"]), np.minimum(mean + std, 1)
    axes.fill_between(clients["round"], low, high, color=GREEN, alpha=0.18, linewidth=0, label="± standard deviation")
    axes.plot(clients["round"], mean, color=GREEN, label="mean of clients, each on its mix")
    axes.plot(clients["round"], clients["client_accuracy_min"], color=GREEN, linestyle=(0, (1.2, 1.4)), label="worst client")
    return [low, high, clients["client_accuracy_min"]]


def loss(runs: Sequence[Run]) -> Figure:
    """Mean training loss of each round."""
    figure, axes = new(*_size(runs))
    _curves(
        axes,
        runs,
        lambda run: columns.with_loss(run)["round"],
        lambda run: columns.with_loss(run)["train_loss"],
        "No round was trained.",
    )
    rounds_axis(axes, np.concatenate([columns.rounds(run)["round"] for run in runs]))
    axes.set_ylabel("mean training loss")
    return figure


def accuracy_by_bytes(runs: Sequence[Run]) -> Figure:
    """Test accuracy against the bytes that the federation had sent so far."""
    most = (
        max(float(columns.traffic(run)[-1]) for run in runs if len(columns.rounds(run)))
        if any(len(columns.rounds(run)) for run in runs)
        else 0
    )
    if most == 0:
        raise NothingError("No run has sent a byte: there is nothing to compare accuracy with.")
    unit, name = bytes_unit(most)
    return _accuracy_by(runs, columns.traffic, unit, f"sent by the federation, up and down ({name})")


def accuracy_by_seconds(runs: Sequence[Run]) -> Figure:
    """Test accuracy against the seconds of the rounds so far."""
    most = max((float(columns.elapsed(run)[-1]) for run in runs if len(columns.rounds(run))), default=0)
    unit, name = seconds_unit(most)
    return _accuracy_by(runs, columns.elapsed, unit, f"time in rounds ({name})")


def _accuracy_by(runs: Sequence[Run], cost: Callable[[Run], Numbers], unit: float, label: str) -> Figure:
    figure, axes = new(*_size(runs))

    def costs(run: Run) -> Numbers:
        points: Numbers = cost(run)[~np.isnan(columns.rounds(run)["test_accuracy"])] / unit
        return points

    _curves(axes, runs, costs, lambda run: views.accuracies(columns.rounds(run))["test_accuracy"], UNTESTED)
    axes.set_xlim(left=0)
    percent_axis(axes, np.concatenate([views.accuracies(columns.rounds(run))["test_accuracy"] for run in runs]))
    axes.set_ylabel("test accuracy (%)")
    axes.set_xlabel(label)
    return figure


def _curves(axes: Axes, runs: Sequence[Run], x: Callable[[Run], Numbers], y: Callable[[Run], Numbers], nothing: str) -> None:
    """Draw a line for each run, with dots where points are few, and a key below several lines.

    Raises NothingError with the text `nothing` when no run has a point.
    """
    if not any(len(y(run)) for run in runs):
        raise NothingError(nothing)
    for number, (run, name) in enumerate(zip(runs, columns.names(runs), strict=True)):
        points = thinned(x(run), y(run), max(50, MOST_POINTS // len(runs) // 4))
        few = len(points[0]) <= (ALL_DOTS if len(runs) <= 3 else 1)
        label = name if len(runs) > 1 else "all test images"
        markers: dict[str, Any] = (
            {"clip_on": False, "marker": "o" if few else None} if len(points[0]) else {}
        )  # an empty line with markers would take room
        axes.plot(*points, **line_style(number), **markers, markersize=3.2, label=label, zorder=3)
    if 1 < len(runs) <= MOST_IN_LEGEND:
        legend_below(axes, _per_row(runs))


def _size(runs: Sequence[Run]) -> tuple[float, float]:
    lines = 0 if len(runs) == 1 else min(len(runs), MOST_IN_LEGEND)
    return HALF, 2.9 + 0.19 * -(-lines // _per_row(runs))


def _per_row(runs: Sequence[Run]) -> int:
    """Names in a row of the key."""
    longest = max(map(len, columns.names(runs)))
    return 3 if longest <= 12 else 2 if longest <= 24 else 1
