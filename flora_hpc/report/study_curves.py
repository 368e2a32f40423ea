"""Curves of a study with bands: in one panel, by round, bytes and seconds, and as small multiples by key."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from flora_hpc.report import study_bands
from flora_hpc.report.study_bands import Band
from flora_hpc.report.study_grid import Axis, Keys, identity
from flora_hpc.report.study_lines import MOST_BEFORE_PANELS, NARROW, Entry, entries, figure_of, most_bands, overview
from flora_hpc.report.study_results import Group, Results
from flora_hpc.report.style import NothingError, bytes_unit, line_style, percent_axis, rounds_axis, seconds_unit

LOG = 20  # an axis is logarithmic from this ratio of its largest to its smallest value
BAND = 0.16  # density of a band
FEW = 24  # points of a curve, or curves in all panels, up to which points are dots
NOTHING = {
    "test_accuracy": "No round was evaluated.",
    "train_loss": "No round was trained.",
    "personal_accuracy_mean": "Clients' own models were not tested.",
}
LABELS = {
    "test_accuracy": "test accuracy (%)",
    "train_loss": "mean training loss",
    "personal_accuracy_mean": "mean personal accuracy (%)",
}
AXES = {
    "bytes": "sent by the federation, up and down{}",
    "seconds": "time in rounds{}",
    "train_seconds": "time in training alone{}",
}


def curves(results: Results, width: float, value: str = "test_accuracy", cost: str = "round") -> Figure:
    """A value of /rounds against a cost, a line a setting."""
    groups = drawn_groups(results, value, cost)
    lines = overview(results, groups)
    figure, axes = figure_of(width, 2.9 if width >= NARROW else 0.66 * width, entries(results, lines))
    unit = _cost_axis(axes, [group.bands[value] for group in groups], cost)
    for group, style in lines:
        is_marked = len(groups) <= most_bands(results) or style.get("zorder", 0) >= 4
        _draw(axes, group.bands[value], style, value, cost, unit, is_marked, is_marked)
    has_bands = len(groups) <= most_bands(results)
    _value_axis(axes, [group.bands[value] for group in groups], value, has_bands)
    return figure


def panels(results: Results, width: float) -> Figure:
    """Accuracy by round: a panel for each value of one key or two, a line for each value of another."""
    grid, value = results.grid, "test_accuracy"
    groups = drawn_groups(results, value, "round")
    if not (grid.lines and grid.panels):
        raise NothingError("Fewer than two keys vary: the first figure shows all.")
    cells = [
        {axis.key: keys for axis, keys in zip(grid.panels, combination, strict=True)} for combination in panel_samples(grid.panels)
    ]
    columns = _columns(grid.panels, len(cells), width)
    rows = -(-len(cells) // columns)
    key = [Entry(results.names.pair(keys, grid.lines.key), line_style(number)) for number, keys in enumerate(grid.lines.samples)]
    height = rows * max(1.2, 0.72 * width / columns) + 0.5
    figure, all_axes = figure_of(width, height, key, rows, columns, sharex=True, sharey=True, squeeze=False)
    has_bands, has_dots = len(grid.lines) <= MOST_BEFORE_PANELS, len(grid.lines) * len(cells) <= FEW
    for axes, cell in itertools.zip_longest(all_axes.flat, cells):
        if cell is None:
            axes.set_visible(False)
            continue
        members = [
            group for group in groups if all(identity(group.setting.keys, k) == identity(keys, k) for k, keys in cell.items())
        ]
        for number in range(len(grid.lines)):
            best = results.best_of(group for group in members if grid.lines.index(group.setting.keys) == number)
            if best:
                _draw(axes, best.bands[value], line_style(number), value, "round", 1, has_bands, has_dots)
        axes.set_title("\n".join(results.names.pair(keys, k) for k, keys in cell.items()), fontsize="medium", loc="left")
    bands = [group.bands[value] for group in groups]
    first = all_axes[0, 0]
    rounds_axis(first, np.concatenate([band.x["round"] for band in bands]))
    _value_axis(first, bands, value, has_bands)
    first.set_ylabel("")
    for place, axes in enumerate(all_axes.flat):
        is_lowest = place < len(cells) <= place + columns
        axes.set_xlabel("round" if is_lowest else "")
        axes.tick_params(labelbottom=is_lowest)
    figure.supylabel(LABELS[value], fontsize="medium", color=first.yaxis.label.get_color())
    return figure


def panel_samples(axes: Sequence[Axis]) -> list[tuple[Keys, ...]]:
    """The combinations of values that have a panel: rows by the second key, columns by the first."""
    return [combination[::-1] for combination in itertools.product(*(axis.samples for axis in axes[::-1]))]


def _columns(axes: Sequence[Axis], num: int, width: float) -> int:
    """Panels beside each other: those of the first key where they fit."""
    fitting = max(1, int(width / (1.5 if width < NARROW else 1.9)))
    if len(axes) == 2:
        return len(axes[0]) if len(axes[0]) <= fitting + 1 else min(fitting, num)
    rows = -(-num // fitting)
    return -(-num // rows)


def drawn_groups(results: Results, value: str, cost: str) -> list[Group]:
    """The groups with a curve. Raises NothingError where there is none."""
    groups = [group for group in results.groups if value in group.bands]
    if not groups:
        raise NothingError(NOTHING[value])
    if cost != "round" and not any(group.bands[value].x[cost][-1] > 0 for group in groups):
        raise NothingError(
            "No run has sent a byte: there is nothing to compare with." if cost == "bytes" else "No second was measured."
        )
    return groups


def is_log(results: Results, value: str, cost: str) -> bool:
    """Whether the cost has a logarithmic axis: settings end far apart."""
    ends = [float(group.bands[value].x[cost][-1]) for group in results.groups if value in group.bands]
    return cost != "round" and study_bands.ratio([end for end in ends if end > 0]) > LOG


def _cost_axis(axes: Axes, bands: Sequence[Band], cost: str) -> float:
    """Set up the horizontal axis. Returns its unit."""
    if cost == "round":
        rounds_axis(axes, np.concatenate([band.x["round"] for band in bands]))
        return 1
    ends = [float(band.x[cost][-1]) for band in bands]
    if study_bands.ratio([end for end in ends if end > 0]) > LOG:
        return _log_axis(axes, bands, cost, max(ends))
    unit, name = bytes_unit(max(ends)) if cost == "bytes" else seconds_unit(max(ends))
    axes.set_xlabel(AXES[cost].format(f" ({name})"))
    axes.set_xlim(0, max(ends) / unit * 1.02)
    return unit


def _log_axis(axes: Axes, bands: Sequence[Band], cost: str, most: float) -> float:
    """Set up a logarithmic axis of bytes or seconds, from the first trained round on. Returns its unit."""
    starts = [float(band.x[cost][here].min()) for band in bands if (here := _on_log_axis(band, cost)).any()]
    unit, name = (1.0, "") if cost == "bytes" else seconds_unit(most)
    axes.set_xlabel(AXES[cost].format(f" ({name})" if name else ""))
    axes.set_xscale("log")
    axes.set_xlim(min(starts) / unit / 1.3, most / unit * 1.3)
    axes.xaxis.set_major_locator(LogLocator(numticks=7))
    axes.xaxis.set_major_formatter(lambda value, _: _bytes(value) if cost == "bytes" else f"{value:,.10g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    return unit


def _bytes(value: float) -> str:
    unit, name = bytes_unit(value)
    return f"{value / unit:g} {name}"


def _on_log_axis(band: Band, cost: str) -> npt.NDArray[np.bool_]:
    """The points of a curve that a logarithmic axis shows: round 0 has no cost, or next to none."""
    return (band.x[cost] > 0) & (band.x["round"] > 0)


def _value_axis(axes: Axes, bands: Sequence[Band], value: str, has_bands: bool) -> None:
    """Fit the vertical axis to the curves, and to their bands where these are not much wider."""
    ends = [end for band in bands for end in (band.mean, *(study_bands.clipped(band) if has_bands else ()))]
    if value == "train_loss":
        low, high = float(np.nanmin(ends_of := np.concatenate(ends))), float(np.nanmax(ends_of))
        room = 0.05 * (high - low) or 0.1
        axes.set_ylim(max(0.0, low - room) if low >= 0 else low - room, high + room)
    else:
        percent_axis(axes, np.concatenate(ends).clip(0, 1))
    axes.set_ylabel(LABELS[value])


def _draw(
    axes: Axes, band: Band, style: dict[str, Any], value: str, cost: str, unit: float, has_band: bool, has_dots: bool
) -> None:
    """Draw a curve, with its band and, where rounds are few, with dots."""
    is_placed = _on_log_axis(band, cost) if axes.get_xscale() == "log" else np.ones(len(band.mean), bool)
    x, mean, low, high = (values[is_placed] for values in (band.x[cost] / unit, band.mean, band.low, band.high))
    if has_band and not np.isnan(low).all():
        if value != "train_loss":
            low, high = low.clip(0, 1), high.clip(0, 1)
        axes.fill_between(x, low, high, color=style["color"], alpha=BAND, linewidth=0, zorder=1)
    dots = {"marker": "o", "markersize": 2.6, "clip_on": cost != "round"} if has_dots and 0 < len(x) <= FEW else {}
    axes.plot(x, mean, **{"zorder": 3, **style, **dots})
