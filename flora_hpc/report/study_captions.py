"""Captions of the figures of a study: what lines and bands are, how many seeds, and where axes do not start at zero."""

from collections.abc import Sequence

import numpy as np

from flora_hpc.report import study_curves, study_finals
from flora_hpc.report.columns import percent
from flora_hpc.report.study_bands import Band, clipped
from flora_hpc.report.study_grid import Axis
from flora_hpc.report.study_lines import MOST_BEFORE_PANELS, MOST_STYLES, is_crossed, most_bands
from flora_hpc.report.study_results import Group, Results
from flora_hpc.studies.statistics import Spread

WHAT = {
    "test_accuracy": "Share of test images that get the right class",
    "train_loss": "Mean loss over the examples that clients trained on in a round; different losses or data do not compare",
    "personal_accuracy_mean": "Clients' own models, each on its own mix of classes, mean over clients",
}
COST = {
    "round": "",
    "bytes": " Further up and to the left is better.",
    "seconds": " Evaluation and waiting count, start-up does not. Only runs on the same machines compare.",
    "train_seconds": " Local training alone, mean over ranks, so that no method pays for the simulator. "
    "Only runs on the same machines compare.",
}


def curves(results: Results, value: str = "test_accuracy", cost: str = "round") -> str:
    """Caption of curves with bands in one panel."""
    groups = study_curves.drawn_groups(results, value, cost)
    bands = [group.bands[value] for group in groups]
    among = f" {len(groups):,} settings: only the best and the worst final accuracy have colours." if _is_grey(results) else ""
    has_bands = len(groups) <= most_bands(results) or _is_grey(results)
    what = f"{WHAT[value]}. " if cost == "round" else ""
    text = f"{what}{_mean(bands, has_bands)}{among}{COST[cost]}"
    if study_curves.is_log(results, value, cost):
        text += " The horizontal axis is logarithmic."
    return text + _cut(bands, value, has_bands)


def panels(results: Results) -> str:
    """Caption of the small multiples."""
    bands = [group.bands["test_accuracy"] for group in study_curves.drawn_groups(results, "test_accuracy", "round")]
    has_bands = results.grid.lines is not None and len(results.grid.lines) <= MOST_BEFORE_PANELS
    text = f"{WHAT['test_accuracy']}, on one scale. {_mean(bands, has_bands)}{best_of(results, results.grid.rest)}"
    return text + _cut(bands, "test_accuracy", has_bands)


def finals(results: Results) -> str:
    """Caption of the final accuracies by setting."""
    groups = study_finals.final_groups(results)
    which = f" The best {len(groups)} of {len(results.ranked):,} settings." if len(groups) < len(results.ranked) else ""
    text = f"{_dots([group.final for group in groups])}{which} A setting's accuracy is that of its last evaluated round."
    return text + _cut_bars([group.final for group in groups]) + _start([group.final.mean for group in groups])


def by_key(results: Results, axis: Axis) -> str:
    """Caption of the final accuracy against a numeric key."""
    lines = study_finals.line_key(results, axis)
    drawn = {axis.key, lines.key if lines else axis.key}
    groups = results.ranked
    num = _num([group.final.n for group in groups])
    bars = (
        f"; bars are the 95\u00a0% t-interval of the mean of {num}"
        if any(group.final.n > 1 for group in groups)
        else " of one seed"
    )
    text = f"Mean accuracy of the last evaluated round{bars}."
    text += best_of(results, [key for key in results.grid.keys if key not in drawn])
    text += " The horizontal axis is logarithmic." if study_finals.is_log(axis) else ""
    followers = [results.names.key(key) for key, leader in results.grid.along.items() if leader == axis.key]
    text += f" {' and '.join(followers)} {'changes' if len(followers) == 1 else 'change'} with it." if followers else ""
    return text + _cut_bars([group.final for group in groups]) + _start([group.final.mean for group in groups])


def heat_map(results: Results) -> str:
    """Caption of the heat map."""
    axes = study_finals.map_axes(results)
    assert axes is not None
    values = study_finals.map_cells(results, *axes).values()
    drawn = {axis.key for axis in axes}
    num = _num([group.final.n for group in results.ranked])
    text = f"Mean accuracy of the last evaluated round, in\u00a0%, of {num}; denser is higher, from {percent(min(values))} to "
    text += f"{percent(max(values))}."
    return text + best_of(results, [key for key in results.grid.keys if key not in drawn])


def best_of(results: Results, keys: Sequence[str]) -> str:
    """A sentence on the choice between settings that also differ in `keys`; empty for none."""
    if not keys:
        return ""
    images = "validation" if results.is_validated else "test"
    names = " and ".join(results.names.key(key) for key in keys)
    return f" Settings also differ in {names}: of these, the one with the best final {images} accuracy."


def _is_grey(results: Results) -> bool:
    return len(results.groups) > MOST_STYLES and not is_crossed(results)


def _num(counts: Sequence[int]) -> str:
    """'3 seeds', or '2 to 3 seeds'."""
    least, most = min(counts, default=0), max(counts, default=0)
    return f"{most} seed{'s' * (most != 1)}" if least == most else f"{least} to {most} seeds"


def _mean(bands: Sequence[Band], has_bands: bool) -> str:
    counts = np.concatenate([band.n for band in bands])
    if counts.max() == 1:
        return "One seed a setting, so no band."
    text = f"A line is the mean over n\u00a0=\u00a0{_num([int(counts.min()), int(counts.max())])}"
    if not has_bands:
        return f"{text}; bands of so many lines would hide them."
    return f"{text}, its band the 95\u00a0% t-interval of the mean."


def _cut(bands: Sequence[Band], value: str, has_bands: bool) -> str:
    """Sentences about bands that leave the axis, and about where it starts."""
    is_cut = has_bands and any(
        bool((low > band.low + 1e-9).any() or (high < band.high - 1e-9).any()) for band in bands for low, high in [clipped(band)]
    )
    text = " Bands that are much wider than the curves are cut." if is_cut else ""
    if value == "train_loss":
        return text + (" The axis does not start at zero." if min(float(band.mean.min()) for band in bands) > 0 else "")
    return text + _start([float(band.mean.min()) for band in bands])


def _cut_bars(spreads: Sequence[Spread]) -> str:
    ends = study_finals.limits(spreads)
    is_cut = any(max(0, spread.low) < ends.min() - 1e-9 or min(1, spread.high) > ends.max() + 1e-9 for spread in spreads)
    return " Intervals that are much wider than the differences are cut." if is_cut else ""


def _start(shares: Sequence[float]) -> str:
    return " The axis of accuracy does not start at zero." if min(shares) > 0.1 else ""


def _dots(spreads: Sequence[Spread]) -> str:
    if max(spread.n for spread in spreads) == 1:
        return "A dot is a setting, of one seed."
    return "A dot is the mean, the pale bar its 95\u00a0% t-interval, a stroke one seed."


def group_text(results: Results, group: Group) -> str:
    """'93.20 ± 0.41 %' of a setting."""
    spread = group.final
    return f"{100 * spread.mean:.2f} ± {percent(spread.std)}" if spread.n > 1 else percent(spread.mean)
