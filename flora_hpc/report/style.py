"""How figures of runs look: one style for a page, which follows light and dark, and for a paper."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import FuncFormatter, MaxNLocator

from flora_hpc.records import views

Numbers = npt.NDArray[Any]

HALF, WIDE = 4.7, 9.6  # inches: two figures beside each other, or one
INK, GREY, AXIS, GRID, PAPER = "#1b1f24", "#5d6570", "#b4bac2", "#e4e7eb", "#ffffff"
BLUE, ORANGE, GREEN, PURPLE, OCHRE, SLATE = "#0072b2", "#d55e00", "#008f68", "#b0539a", "#a87900", "#3d434b"
DARK = {  # colour on a light page -> colour on a dark page
    INK: "#e6e8eb",
    GREY: "#a3abb6",
    AXIS: "#4a515b",
    GRID: "#2a3038",
    PAPER: "#15181d",
    BLUE: "#4aa8e0",
    ORANGE: "#ff8a3d",
    GREEN: "#2cc99b",
    PURPLE: "#df8cc9",
    OCHRE: "#e3b23c",
    SLATE: "#c9ced6",
}
LINES = (BLUE, ORANGE, GREEN, PURPLE, OCHRE, SLATE)  # from Okabe and Ito's colours, which the colour-blind tell apart
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))
# like those of the terminal, in its order; neighbours differ in lightness too. They suit both pages
OF_PHASES = ("#a5d883", "#2e8b57", "#86d3dc", "#f2b632", "#b5488f", "#2f97a3", "#4a7fd4", "#9aa1ab")
PHASES = dict(zip(views.PHASES, OF_PHASES, strict=True))
DENSE_BLUE, DENSE_AMBER = "#2b8fd6", "#e08a00"  # of pictures: denser for more, on both pages
MOST_POINTS = 4000  # of all lines of a figure
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "font.size": 9,
    "text.parse_math": False,  # a class may be called $
    "text.color": INK,
    "axes.edgecolor": AXIS,
    "axes.labelcolor": GREY,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": AXIS,
    "ytick.color": AXIS,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.8,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "flora-hpc",
    "pdf.fonttype": 42,  # text that journals accept
}

SMALL: Any = {  # of a figure in a column of a paper: text of 7 to 8 points
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.2,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
}


class NothingError(Exception):
    """There is nothing to draw; the text is a sentence that says why."""


@contextmanager
def styled(small: bool = False) -> Iterator[None]:
    """Draw and save figures in this style inside, whatever a matplotlibrc says; `small` is for narrow ones."""
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names in a script that the font lacks: boxes, but a picture
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE | (SMALL if small else {}))
        yield


def new(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of this size in inches, and its axes."""
    figure = Figure((width, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def line_style(number: int) -> dict[str, Any]:
    """Colour and dashes of the line with this number; 24 lines are distinct, also to the colour-blind."""
    return {"color": LINES[number % len(LINES)], "linestyle": DASHES[number // len(LINES) % len(DASHES)]}


def rounds_axis(axes: Axes, rounds: Numbers) -> None:
    """Whole rounds from the first to the last."""
    first, last = (int(rounds.min()), int(rounds.max())) if len(rounds) else (0, 1)
    margin = max(0.5, 0.01 * (last - first))
    axes.set_xlim(first - margin, last + margin)
    if last - first < 8:
        axes.set_xticks(np.arange(first, last + 1))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("round")


def unit_of(most: float, units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """The largest unit that is not larger than `most`, else the smallest."""
    return next((unit for unit in units if most >= unit[0]), units[-1])


BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes"))
SECONDS = ((7200, "hours"), (300, "minutes"), (1, "seconds"), (1e-3, "milliseconds"), (1e-6, "microseconds"))
LENGTHS = {"hours": 3600.0, "minutes": 60.0}


def bytes_unit(most: float) -> tuple[float, str]:
    """Bytes in a unit, and its name."""
    return unit_of(most, BYTES)


def seconds_unit(most: float) -> tuple[float, str]:
    """Seconds in a unit, and its name."""
    limit, name = unit_of(most, SECONDS)
    return LENGTHS.get(name, limit), name


def percent_axis(axes: Axes, values: Numbers, horizontal: bool = False) -> None:
    """Shares as percent, from a bit below the least to a bit above the most."""
    low, high = (float(np.nanmin(values)), float(np.nanmax(values))) if np.isfinite(values).any() else (0.0, 1.0)
    room = max(0.02, 0.06 * (high - low))
    ends = max(0.0, low - room), min(1.0, high + room) if high <= 1 else high + room
    if horizontal:
        axes.set_xlim(*ends)
    else:
        axes.set_ylim(*ends)
    axis = axes.xaxis if horizontal else axes.yaxis
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))


def thinned(x: Numbers, y: Numbers, most: int) -> tuple[Numbers, Numbers]:
    """At most `most` points of a curve: the means of equal stretches, and its ends as they are."""
    if len(x) <= max(most, 3):
        return x, y
    edges = np.linspace(1, len(x) - 1, most - 1).astype(np.int64)
    counts = np.diff(edges)
    inner_x, inner_y = (np.add.reduceat(values[: edges[-1]].astype(float), edges[:-1]) / counts for values in (x, y))
    return np.concatenate([x[:1], inner_x, x[-1:]]), np.concatenate([y[:1], inner_y, y[-1:]])


def stretches(num: int, most: int) -> Numbers:
    """The starts of at most `most` equal stretches of 0..num-1."""
    return np.unique(np.linspace(0, num, min(num, most), endpoint=False).astype(np.int64))


def round_stretches(rounds: Numbers, most: int) -> Numbers:
    """As `stretches`, but round 0, which trains nobody, stays alone."""
    alone = int(len(rounds) > most and rounds[0] == 0)
    return np.concatenate([np.arange(alone), alone + stretches(len(rounds) - alone, most)])


def blocks(axes: Axes, left: Numbers, right: Numbers, bottom: Numbers, top: Numbers, colour: str, label: str | None = None) -> None:
    """Rectangles as one path."""
    corners = np.stack(
        [np.stack([left, bottom], -1), np.stack([left, top], -1), np.stack([right, top], -1), np.stack([right, bottom], -1)], 1
    )
    vertices = np.concatenate([corners, corners[:, :1]], 1).reshape(-1, 2)
    codes = np.tile([Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY], len(corners))
    axes.add_patch(PathPatch(Outline(vertices, codes), facecolor=colour, edgecolor="none", linewidth=0, label=label))


def shades(values: Numbers, colour: str) -> Numbers:
    """Values 0..1 as a picture whose colour is the denser the higher they are, on paper of any colour."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    picture = np.empty((*values.shape, 4), np.uint8)
    picture[..., :3] = red, green, blue
    picture[..., 3] = np.nan_to_num(values.clip(0, 1) * 255).round()
    return picture


def shade_key(axes: Axes, most: float, colour: str, label: str, power: float = 1.0) -> None:
    """A bar beside `axes` that says which density means which share, 0..most."""
    bar = axes.inset_axes((1.015, 0.0, 0.014, 1.0))
    bar.imshow(shades(np.linspace(1, 0, 64)[:, None], colour), aspect="auto", extent=(0, 1, 0, 1), interpolation="nearest")
    bar.set_xticks([])
    marks: Numbers = np.asarray(MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(0, 100 * most))
    marks = marks[marks <= 100 * most * 1.001]
    bar.set_yticks((marks / 100 / most) ** power, [f"{mark:.3g} %" for mark in marks])
    bar.set_ylim(0, 1)
    bar.yaxis.tick_right()
    bar.grid(False)
    bar.set_ylabel(label, labelpad=4)
    bar.yaxis.set_label_position("right")


def legend_below(axes: Axes, columns: int, **options: Any) -> None:
    """Put the key below the axes, where it covers nothing."""
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, **options)
