"""A line of braille dots as text: two columns and four rows of dots in every cell of a terminal."""

from collections.abc import Callable, Sequence

import numpy as np
from rich.text import Text

from flora_hpc.records.schema import Rows

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a cell: left and right column, from the top down
BLANK = 0x2800  # the braille pattern without dots
CELLS_A_STEP = 10  # between two values at most: a few values do not fill a wide terminal
LABEL = 6  # cells of a label, and one between the label and the dots


def plot(
    values: Sequence[float], width: int, height: int, limits: tuple[float, float], label: Callable[[float], str], style: str
) -> list[Text]:
    """`height` lines of up to `width` cells: the values from left to right, the two limits in front of the first and last line."""
    bottom, top = limits
    across = max(2, min(width - LABEL - 1, CELLS_A_STEP * (len(values) - 1) + 1))
    cells = line(values, across, height, bottom, top)
    labels = {0: label(top)} | {height - 1: label(bottom)}
    return [
        Text.assemble((f"{labels.get(row, '')[:LABEL]:>{LABEL}} ", "dim"), ("".join(cells[row]), style)) for row in range(height)
    ]


def line(values: Sequence[float], width: int, height: int, bottom: float, top: float) -> list[list[str]]:
    """`height` rows of `width` cells with one line through all values. Where there are too many values, it goes through means."""
    columns, rows = 2 * width, 4 * height
    if len(values) > columns:
        values = [float(np.mean(part)) for part in np.array_split(np.asarray(values), columns)]
    at = np.interp(np.linspace(0, len(values) - 1, columns), np.arange(len(values)), values)
    share = (at - bottom) / (top - bottom) if top > bottom else np.full(columns, 0.5)
    dots = np.clip(np.round((1 - share) * (rows - 1)), 0, rows - 1).astype(int).tolist()
    codes = np.full((height, width), BLANK)
    for column, dot in enumerate(dots):
        before = dots[column - 1] if column else dot
        step = (dot > before) - (dot < before)
        first, last = sorted((dot, before + step))  # a steep line has no gaps
        for each in range(first, last + 1):
            codes[each // 4, column // 2] |= DOTS[column % 2][each % 4]
    return [[chr(code) if code != BLANK else " " for code in row] for row in codes.tolist()]  # every encoding has a space


def axis(rounds: Rows, lines: Sequence[Text]) -> Text:
    """The first and the last round, below the two ends of these lines of a plot."""
    first, last = str(rounds["round"][0]), str(rounds["round"][-1])
    width = max(each.cell_len for each in lines) - LABEL - 1
    gap = width - len(first) - len(last)
    return Text(f"{'round':>{LABEL}} {first}{' ' * gap}{last}" if gap > 0 else f"{'round':>{LABEL}} {last}", "dim")


def percent_limits(values: Sequence[float]) -> tuple[float, float]:
    """The nearest whole percents around shares of 0..1."""
    bottom, top = float(np.floor(min(values) * 100 + 1e-9) / 100), float(np.ceil(max(values) * 100 - 1e-9) / 100)
    return (bottom, top) if bottom < top else (max(0.0, bottom - 0.01), min(1.0, top + 0.01))
