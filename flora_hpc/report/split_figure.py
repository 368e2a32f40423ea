"""A split of images over clients on a page: dots or a heat map, with sizes and divergences at the side."""

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flora_hpc.data.images import Ints
from flora_hpc.data.mix import Floats, Mix, divergence
from flora_hpc.errors import UserError, reason
from flora_hpc.report import split_page, words
from flora_hpc.report.split_page import Page

MOST_BARS = 60  # classes with a bar of their own
INK, GREY, PALE = "#222222", "#666666", "#DDDDDD"
SOFT, BLUE, ORANGE = "#5B9BC8", "#20639B", "#D55E00"  # distinct to the colour-blind
SHADES = LinearSegmentedColormap.from_list("shades", ["#FFFFFF", "#BFD7EA", "#5B9BC8", "#20639B", "#0B2545"])
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "font.size": 8,
    "text.parse_math": False,  # a class may be called $
    "text.color": INK,
    "axes.edgecolor": "#AAAAAA",
    "axes.labelcolor": GREY,
    "axes.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "svg.fonttype": "path",
    "svg.hashsalt": "flora-hpc",
}


def save(mix: Mix, path: Path, title: str) -> None:
    """Draw into a file, PNG or SVG by its suffix; the same split gives the same bytes."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    kind = path.suffix.lower().removeprefix(".")
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names in a script that the font lacks: boxes, but a picture
        mpl.rcdefaults()  # ignore a matplotlibrc
        mpl.rcParams.update(STYLE)
        figure = draw(mix, title)
        try:
            figure.savefig(part, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else {"Software": None})
            part.replace(path)
        except OSError as error:
            raise UserError(f"{path}: cannot write a picture there: {reason(error)}") from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink()


def draw(mix: Mix, title: str) -> Figure:
    """The picture, in the style of `save`: clients by classes; all training images above; sizes and divergences beside."""
    page = split_page.make(mix, words.plain(title, 200))
    figure = Figure((page.width, page.height), facecolor="white")
    FigureCanvasAgg(figure)
    _text(figure, page)
    matrix = page.axes(figure, page.left, page.bottom, page.matrix_width, page.matrix_height)
    counts = mix.counts[_order(mix)]
    if page.dots:
        _dots(matrix, counts, page)
    else:
        _heat(matrix, counts, page, figure)
    _name_classes(matrix, mix, page)
    _name_clients(matrix, mix, page)
    _available(page.axes(figure, page.left, page.bottom + page.matrix_height + 0.08, page.matrix_width, 0.62), mix, matrix)
    if page.lines:
        sides = [page.axes(figure, page.side(i), page.bottom, page.side_width, page.matrix_height) for i in range(2)]
        _bars(sides[0], counts.sum(1))
        _lollipops(sides[1], divergence(counts, mix.available), mix.by_chance)
    else:
        left, height = page.side(0) + 0.35, page.matrix_height / 2 - 0.35
        width = page.side(1) + page.side_width - left
        _size_histogram(page.axes(figure, left, page.bottom + height + 0.7, width, height), mix)
        _divergence_histogram(page.axes(figure, left, page.bottom, width, height), mix)
    return figure


def _order(mix: Mix) -> Ints:
    """The order of clients from the top down: by id; many clients by their main class, then by its share."""
    if mix.num_shown <= split_page.MOST_LINES:
        return np.arange(mix.num_shown)
    shares = mix.counts / mix.counts.sum(1, keepdims=True)
    return np.lexsort((-shares.max(1), shares.argmax(1)))


def _text(figure: Figure, page: Page) -> None:
    """Title and sentence above, notes below."""
    left, top = 0.25 / page.width, page.height
    below = top - 0.2 - 0.2 * len(page.title)
    figure.text(left, (top - 0.15) / top, "\n".join(page.title), size=11, weight="bold", va="top", linespacing=1.3)
    figure.text(left, below / top, "\n".join(page.subtitle), size=9, color=GREY, va="top", linespacing=1.35)
    figure.text(left, 0.15 / top, "\n".join(page.notes), size=7, color=GREY, linespacing=1.35)


def _dots(axes: Axes, counts: Ints, page: Page) -> None:
    """A dot for each client and class; its area is the number of examples."""
    rows, classes = np.nonzero(counts)
    cell = min(page.matrix_width / counts.shape[1], page.matrix_height / counts.shape[0], 0.5) * 72
    values = counts[rows, classes]
    axes.hlines(np.arange(len(counts)), -0.5, counts.shape[1] - 0.5, color="#EEEEEE", linewidth=0.6, zorder=0)
    area = (0.94 * cell) ** 2 * values / counts.max()
    axes.scatter(classes, rows, s=area.clip(min=1.5), color=BLUE, linewidths=0, zorder=2)
    axes.set_xlim(-0.5, counts.shape[1] - 0.5)
    axes.set_ylim(len(counts) - 0.5, -0.5)


def _heat(axes: Axes, counts: Ints, page: Page, figure: Figure) -> None:
    """A darker place for a larger share of the client's examples; the scale goes by the square root."""
    shares = counts / counts.sum(1, keepdims=True)
    image = axes.imshow(shares, SHADES, PowerNorm(0.5, 0, shares.max()), aspect="auto", interpolation="nearest")
    bar = page.axes(figure, page.side(0), page.bottom + page.matrix_height + 0.42, page.side_width, 0.1)
    figure.colorbar(image, bar, orientation="horizontal", ticks=[0, shares.max() / 4, shares.max()], format="{x:.0%}")
    bar.set_title("share of the client's examples", size=8, color=GREY, loc="left", pad=3)
    bar.tick_params(length=2)


def _name_classes(axes: Axes, mix: Mix, page: Page) -> None:
    axes.set_xticks(split_page.labelled_classes(mix), split_page.class_labels(mix), rotation=90 if page.vertical else 0)
    axes.tick_params(axis="x", length=2 if mix.num_classes > split_page.MOST_NAMES else 0)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(not page.dots)


def _name_clients(axes: Axes, mix: Mix, page: Page) -> None:
    axes.tick_params(axis="y", length=0)
    if page.lines:
        axes.set_yticks(np.arange(mix.num_shown), [str(client) for client in mix.clients])
        axes.set_ylabel("client")
    else:
        axes.set_yticks([])
        number = f"{mix.num_shown:,}" if mix.num_shown == mix.num_clients else f"{mix.num_shown:,} of {mix.num_clients:,}"
        axes.set_ylabel(f"{number} clients, sorted by the {mix.unit} they hold most of")


def _available(axes: Axes, mix: Mix, matrix: Axes) -> None:
    """Bars of all training images of each class, and of the images that clients hold."""
    places = np.arange(mix.num_classes + 1)
    for counts, colour in ((mix.available, PALE), (mix.held, SOFT if mix.exact else GREY)):
        if mix.num_classes <= MOST_BARS:
            axes.bar(places[:-1], counts, 0.7, color=colour, linewidth=0)
        else:  # without seams between them
            axes.stairs(counts, places - 0.5, fill=True, color=colour, linewidth=0)
    axes.set_ylim(0, 1.02 * mix.available.max())
    axes.set_xlim(matrix.get_xlim())
    axes.set_xticks([])
    axes.set_yticks([0, int(mix.available.max())], ["0", f"{mix.available.max():,}"])
    axes.spines[["top", "right", "left"]].set_visible(False)
    note = "blue: held by clients" if mix.exact else f"dark: held by {mix.num_examined:,} clients"
    axes.set_title(f"training images of each {mix.unit}; {note}", size=8, color=GREY, loc="left", pad=3)


def _bars(axes: Axes, sizes: Ints) -> None:
    """A bar and a number for each client."""
    rows = np.arange(len(sizes))
    axes.barh(rows, sizes, 0.66, color=BLUE, linewidth=0)
    for row, size in zip(rows.tolist(), sizes.tolist(), strict=True):
        axes.text(size + 0.03 * sizes.max(), row, f"{size:,}", va="center", size=7)
    axes.set_xlim(0, 1.4 * sizes.max())
    _side(axes, len(sizes), "examples")
    axes.set_xticks([])


def _lollipops(axes: Axes, divergences: Floats, by_chance: float) -> None:
    """The divergence of each client from all training images, 0..1, and the divergence by chance."""
    rows = np.arange(len(divergences))
    axes.axvline(by_chance, color=GREY, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.hlines(rows, 0, divergences, color=ORANGE, linewidth=1.2)
    axes.scatter(divergences, rows, s=14, color=ORANGE, linewidths=0, zorder=3, clip_on=False)
    axes.set_xlim(0, 1)
    _side(axes, len(divergences), "divergence")
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])


def _side(axes: Axes, num_rows: int, label: str) -> None:
    axes.set_ylim(num_rows - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(label, size=8, color=GREY, loc="left", pad=3)


def _size_histogram(axes: Axes, mix: Mix) -> None:
    low, high = int(mix.sizes.min()), int(mix.sizes.max())
    step = -(-(high - low + 1) // 40)  # whole numbers of examples, so that no bar counts more of them than its neighbours
    edges = np.arange(low, high + step + 1, step) - 0.5
    axes.hist(mix.sizes, edges.tolist(), color=BLUE, linewidth=0, rwidth=0.9)
    axes.set_xlim(low - max(2, 0.05 * (high - low)), high + max(2, 0.05 * (high - low)))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _histogram(axes, "examples of a client")


def _divergence_histogram(axes: Axes, mix: Mix) -> None:
    axes.hist(mix.divergences, np.linspace(0, 1, 41).tolist(), color=ORANGE, linewidth=0, rwidth=0.9)
    axes.axvline(mix.by_chance, color=GREY, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_xlim(0, 1)
    _histogram(axes, "divergence")


def _histogram(axes: Axes, label: str) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(label)
    axes.set_title("clients", size=8, color=GREY, loc="left", pad=3)
