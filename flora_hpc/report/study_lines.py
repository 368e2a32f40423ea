"""How the settings of a study look: colour and dashes, the same in every figure and table, and the key below a figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath

from flora_hpc.report import words
from flora_hpc.report.study_results import Group, Results
from flora_hpc.report.style import AXIS, BLUE, DASHES, GREY, LINES, ORANGE, line_style, new

MOST_STYLES = len(LINES) * len(DASHES)  # settings with a line of their own; of more, the best and the worst have one
MOST_BANDS = 12  # settings in one panel with bands
MOST_BEFORE_PANELS = 8  # where there are small multiples, in these and in one panel
NARROW = 4.5  # inches; narrower figures have smaller text and thinner lines


@dataclass(frozen=True)
class Entry:
    """A name in the key of a figure."""

    label: str
    style: dict[str, Any]


def is_crossed(results: Results) -> bool:
    """Whether colours stand for one key and dashes for the other."""
    grid = results.grid
    return (
        len(grid.axes) == 2
        and grid.lines is not None
        and len(grid.panels) == 1
        and len(grid.lines) <= len(LINES)
        and len(grid.panels[0]) <= len(DASHES)
    )


def most_bands(results: Results) -> int:
    """Up to how many settings have bands in one panel."""
    return MOST_BEFORE_PANELS if results.grid.panels else MOST_BANDS


def style_of(results: Results, group: Group) -> dict[str, Any] | None:
    """Colour and dashes of a setting; None where there are more settings than lines that an eye tells apart."""
    grid, keys = results.grid, group.setting.keys
    if is_crossed(results) and grid.lines:
        return {"color": LINES[grid.lines.index(keys)], "linestyle": DASHES[grid.panels[0].index(keys)]}
    if len(results.groups) > MOST_STYLES:
        return None
    return line_style(grid.lines.index(keys) if grid.lines and len(grid.axes) == 1 else results.groups.index(group))


def overview(results: Results, groups: Sequence[Group]) -> list[tuple[Group, dict[str, Any]]]:
    """The groups in the order of drawing, each with its style; of many, all are thin and grey but the best and the worst."""
    styles = [(group, style_of(results, group)) for group in groups]
    if all(style is not None for _, style in styles):
        return [(group, style or {}) for group, style in styles]
    ends = [group for group in results.ranked if group in groups]
    marked = [] if not ends else [(ends[-1], {"color": ORANGE, "zorder": 4}), (ends[0], {"color": BLUE, "zorder": 5})]
    grey = {"color": AXIS, "linewidth": 0.7, "alpha": 0.7, "zorder": 2}
    return [*((group, grey) for group in groups if all(group is not other for other, _ in marked)), *marked]


def entries(results: Results, drawn: Sequence[tuple[Group, dict[str, Any]]]) -> list[Entry]:
    """The key of a figure with all settings."""
    grid = results.grid
    if len(results.groups) > MOST_STYLES and not is_crossed(results):
        ends = [(group, style) for group, style in drawn if style["color"] in (BLUE, ORANGE)][::-1]
        words_of = ["best", "worst"]
        texts = [Entry(f"{word}: {results.name(group)}", style) for word, (group, style) in zip(words_of, ends, strict=False)]
        return [*texts, Entry(f"{len(drawn) - len(ends):,} other settings", {"color": AXIS, "linewidth": 0.7})]
    if is_crossed(results) and grid.lines:
        dashes = grid.panels[0]
        colours = [
            Entry(results.names.pair(keys, grid.lines.key), {"color": LINES[i]}) for i, keys in enumerate(grid.lines.samples)
        ]
        return colours + [
            Entry(results.names.pair(keys, dashes.key), {"color": GREY, "linestyle": DASHES[i]})
            for i, keys in enumerate(dashes.samples)
        ]
    if len(results.groups) == 1:
        return []
    order = results.grid.lines if results.grid.lines and len(results.grid.axes) == 1 else None
    ordered = sorted(drawn, key=lambda pair: order.index(pair[0].setting.keys)) if order else drawn
    return [Entry(results.name(group), style) for group, style in ordered]


def figure_of(
    width: float, height: float, key: Sequence[Entry], rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, Any]:
    """A figure with room for its key below it; narrow figures are lower, and their text is smaller."""
    num_rows, per_row, most = _key_rows(width, key)
    figure, axes = new(width, height + 0.19 * num_rows, rows, columns, **options)
    if key:
        handles = [Line2D([], [], **entry.style) for entry in key]
        texts = [words.plain(entry.label, most) for entry in key]
        figure.legend(handles, texts, loc="outside lower center", ncols=per_row, columnspacing=1.3)
    return figure, axes


def _key_rows(width: float, key: Sequence[Entry]) -> tuple[int, int, int]:
    """Rows of the key, names in a row, and letters of a name."""
    size = 7.5 if width < NARROW else 8.5
    most = int((width - 0.6) / (0.0083 * size))
    longest = max((inches(words.plain(entry.label, most), size) for entry in key), default=1.0)
    per_row = max(1, min(len(key), int(width / (longest + 0.055 * size))))
    return -(-len(key) // per_row), per_row, most


def inches(text: str, size: float) -> float:
    """The width of a line of text."""
    return float(TextPath((0, 0), text, size=size).get_extents().width) / 72 if text.strip() else 0.0
