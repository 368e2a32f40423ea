"""Final accuracies of a study: by setting, against a numeric key, and as a heat map of two keys."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from flora_hpc.report import study_bands, words
from flora_hpc.report.study_curves import LOG
from flora_hpc.report.study_grid import MOST_LINES, Axis
from flora_hpc.report.study_lines import MOST_STYLES, NARROW, Entry, figure_of, style_of
from flora_hpc.report.study_results import Group, Results
from flora_hpc.report.style import BLUE, GREY, INK, NothingError, line_style, percent_axis
from flora_hpc.studies.statistics import Spread

MOST_CELLS = 24  # of a side of a heat map
PALEST, DENSEST = 0.06, 0.6  # of its cells, so that values in them can be read on light and on dark pages
UNTESTED = "No finished point was evaluated."


def finals(results: Results, width: float) -> Figure:
    """The final accuracy of each setting: its seeds as small dots, the mean as a large one, the interval as a line."""
    groups = final_groups(results)
    keys = results.grid.keys
    labels = [", ".join(results.names.value(group.setting.keys, key) for key in keys) or "all points" for group in groups]
    letters = int(0.42 * width / (0.063 if width < NARROW else 0.07))
    figure, axes = figure_of(width, 0.95 + 0.2 * len(groups), [])
    for place, group in enumerate(groups):
        colour = (style_of(results, group) or {"color": BLUE})["color"]
        spread, values = group.final, group.setting.values("final_test_accuracy")
        if spread.n > 1:
            axes.plot(
                [max(0, spread.low), min(1, spread.high)],
                [place, place],
                color=colour,
                linewidth=4,
                alpha=0.25,
                solid_capstyle="butt",
            )
            axes.plot(values, np.full(len(values), place), "|", color=colour, markersize=7, markeredgewidth=1)
        axes.plot(spread.mean, place, "o", color=colour, markersize=5, zorder=4)
    axes.set_yticks(range(len(groups)), [words.plain(label, letters) for label in labels])
    heading = words.plain(", ".join(map(results.names.key, keys)), int(width / 0.075))
    figure.suptitle(heading, x=0.01, ha="left", fontsize="medium", color=GREY)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    percent_axis(axes, limits([group.final for group in groups]), horizontal=True)
    axes.set_xlabel("final test accuracy (%)")
    return figure


def final_groups(results: Results) -> list[Group]:
    """The groups of the figure: all in the order of the grid, or the best MOST_STYLES."""
    if not results.ranked:
        raise NothingError(UNTESTED)
    tested = [group for group in results.groups if group.final.n]
    if len(tested) > MOST_STYLES:
        return results.ranked[:MOST_STYLES]
    order = results.grid.axes[::-1]
    return sorted(tested, key=lambda group: [axis.index(group.setting.keys) for axis in order[::-1]])


def limits(spreads: Sequence[Spread], room: float = 0.75, least: float = 0.02) -> Any:
    """Means and ends of intervals, cut where they are far from all means: what an axis is fitted to."""
    means = np.array([spread.mean for spread in spreads])
    margin = max(least, room * float(means.max() - means.min()))
    ends = np.array([[spread.low, spread.high] for spread in spreads if spread.n > 1]).reshape(-1)
    return np.concatenate([means, ends.clip(means.min() - margin, means.max() + margin)]).clip(0, 1)


def numeric_keys(results: Results) -> list[Axis]:
    """The keys with three numbers or more."""
    return [axis for axis in results.grid.axes if axis.numbers and len(axis) >= 3]


def line_key(results: Results, axis: Axis) -> Axis | None:
    """The key whose values are lines in the figure of `axis`."""
    lines = results.grid.lines
    if lines and lines.key != axis.key:
        return lines
    return next((other for other in results.grid.axes if other.key != axis.key and len(other) <= MOST_LINES), None)


def by_key(results: Results, width: float, axis: Axis) -> Figure:
    """The final accuracy against a numeric key, a line for each value of another."""
    if not results.ranked:
        raise NothingError(UNTESTED)
    lines = line_key(results, axis)
    key = (
        [Entry(results.names.pair(keys, lines.key), line_style(number)) for number, keys in enumerate(lines.samples)]
        if lines
        else []
    )
    figure, axes = figure_of(width, 2.9 if width >= NARROW else 0.66 * width, key)
    spreads = []
    for number in range(len(lines) if lines else 1):
        members = [group for group in results.ranked if not lines or lines.index(group.setting.keys) == number]
        spreads += _line(axes, results, axis, members, line_style(number))
    percent_axis(axes, limits(spreads))
    axes.set_ylabel("final test accuracy (%)")
    _number_axis(axes, axis)
    axes.set_xlabel(results.names.key(axis.key))
    return figure


def _line(axes: Axes, results: Results, axis: Axis, members: Sequence[Group], style: dict[str, Any]) -> list[Spread]:
    """Draw the best group of `members` at each value of the key, with its interval. Returns what was drawn."""
    best = [results.best_of(group for group in members if axis.index(group.setting.keys) == place) for place in range(len(axis))]
    numbers = axis.numbers or ()
    x = [number for number, group in zip(numbers, best, strict=True) if group]
    spreads = [group.final for group in best if group]
    means, low, high = (np.array([getattr(spread, name) for spread in spreads]) for name in ("mean", "low", "high"))
    if (~np.isnan(low)).any():
        errors = np.stack([means - low.clip(0, 1), high.clip(0, 1) - means])
        axes.errorbar(x, means, errors, fmt="none", ecolor=style["color"], elinewidth=1, capsize=2.5, alpha=0.7)
    axes.plot(x, means, **style, marker="o", markersize=3.6, zorder=3)
    return spreads


def is_log(axis: Axis) -> bool:
    """Whether the axis of a numeric key is logarithmic: its values span more than LOG times, or are powers such as 1, 2, 4, 8."""
    numbers = axis.numbers or ()
    if not numbers or min(numbers) <= 0:
        return False
    steps = np.diff(np.log(numbers))
    return study_bands.ratio(numbers) > LOG or bool(np.ptp(steps) < 0.01 * steps.max() and steps.max() > 0.5)


def _number_axis(axes: Axes, axis: Axis) -> None:
    """A tick at each value where they are few."""
    numbers = axis.numbers or ()
    if is_log(axis):
        axes.set_xscale("log")
        axes.set_xlim(numbers[0] / 1.4, numbers[-1] * 1.4)
    steps = np.diff(np.log(numbers) if is_log(axis) else numbers)
    if len(numbers) <= 9 and steps.min() > 0.07 * steps.sum():
        axes.xaxis.set_major_locator(FixedLocator(list(numbers)))
        axes.xaxis.set_minor_locator(NullLocator())
    elif not is_log(axis):
        axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}" if value < 1e6 else f"{value:.0e}")


def map_axes(results: Results) -> tuple[Axis, Axis] | None:
    """The keys across and up a heat map: the two with most values up to MOST_CELLS; numbers rather across."""
    fitting = sorted((axis for axis in results.grid.axes if len(axis) <= MOST_CELLS), key=lambda axis: -len(axis))[:2]
    if len(fitting) < 2:
        return None
    one, other = fitting
    return (other, one) if other.numbers and not one.numbers else (one, other)


def heat_map(results: Results, width: float) -> Figure:
    """The mean final accuracy of each combination of two keys, written in its cell; denser for more."""
    across, up = map_axes(results) or (None, None)
    if across is None or up is None:
        raise NothingError("Fewer than two keys vary.")
    cells = map_cells(results, across, up)
    least, most = min(cells.values()), max(cells.values())
    names = [words.plain(results.names.value(keys, up.key), 18) for keys in up.samples]
    side = (width - 0.7 - 0.07 * max(map(len, names))) / len(across)  # inches of a cell, about
    height = max(1.7, 0.8 + float(np.clip(0.55 * side, 0.26, 0.42)) * len(up))
    figure, axes = figure_of(width, height, [])
    digits = 2 if most - least < 0.02 and side > 0.45 else 1 if side > 0.34 else 0
    for (column, row), value in cells.items():
        alpha = PALEST + (DENSEST - PALEST) * ((value - least) / (most - least) if most > least else 1)
        axes.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, facecolor=BLUE, alpha=alpha, linewidth=0))
        size = "medium" if side > 0.34 else "x-small"
        axes.text(column, row, f"{100 * value:.{digits}f}", ha="center", va="center", color=INK, fontsize=size)
    axes.set_xlim(-0.55, len(across) - 0.45)
    axes.set_ylim(*((-0.55, len(up) - 0.45) if up.numbers else (len(up) - 0.45, -0.55)))  # numbers ascend, names go down
    labels = [words.plain(results.names.value(keys, across.key), 18) for keys in across.samples]
    is_tight = max(map(len, labels)) * 0.075 > side
    axes.set_xticks(range(len(across)), labels, rotation=90 if is_tight else 0)
    axes.set_yticks(range(len(up)), names)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(results.names.key(across.key))
    axes.set_ylabel(words.plain(results.names.key(up.key), int((height - 0.2) / 0.072)))
    return figure


def map_cells(results: Results, across: Axis, up: Axis) -> dict[tuple[int, int], float]:
    """The final accuracy in each cell: of its best setting, where other keys vary too."""
    if not results.ranked:
        raise NothingError(UNTESTED)
    members: dict[tuple[int, int], list[Group]] = {}
    for group in results.ranked:
        members.setdefault((across.index(group.setting.keys), up.index(group.setting.keys)), []).append(group)
    chosen = {cell: results.best_of(groups) for cell, groups in members.items()}
    return {cell: group.final.mean for cell, group in chosen.items() if group}
