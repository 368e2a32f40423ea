"""The layout of the picture of a split, and the texts around it."""

import textwrap
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from flora_hpc.data.images import Ints
from flora_hpc.data.mix import Mix
from flora_hpc.report import words

MOST_DOTS = (40, 30)  # clients and classes; beyond it a heat map
MOST_LINES = 60  # clients with a line of their own; more clients are sorted by their main class
MOST_NAMES = 50  # class names below a picture


@dataclass(frozen=True)
class Page:
    """The places of the parts, in inches from the lower left corner."""

    left: float
    bottom: float
    matrix_width: float
    matrix_height: float
    title: list[str]
    subtitle: list[str]
    notes: list[str]
    dots: bool
    lines: bool
    vertical: bool  # class names
    side_width: float = 1.5
    gap: float = 0.42

    @property
    def width(self) -> float:
        return self.side(1) + self.side_width + 0.3

    @property
    def height(self) -> float:
        return self.bottom + self.matrix_height + 0.08 + 0.62 + 0.4 + 0.2 * len(self.title) + 0.17 * len(self.subtitle) + 0.25

    def side(self, number: int) -> float:
        """The left edge of a picture to the right of the matrix."""
        return self.left + self.matrix_width + 0.2 + number * (self.side_width + self.gap)

    def axes(self, figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
        """New axes in this place, in inches."""
        return figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))


def make(mix: Mix, title: str) -> Page:
    """The page that fits this split."""
    num_clients, num_classes = mix.counts.shape
    dots = num_clients <= MOST_DOTS[0] and num_classes <= MOST_DOTS[1]
    lines = num_clients <= MOST_LINES
    matrix_width = float(np.clip(0.42 * num_classes, 3.2, 8.0 if dots else 7.5))
    matrix_height = float(np.clip(0.3 * num_clients, 0.6, 7.2)) if lines else 4.6
    if not dots and lines:
        matrix_height = float(np.clip(0.22 * num_clients, 1.2, 7.2))
    widths = [_inches(name) for name in class_labels(mix)]
    vertical = max(widths) > 0.9 * matrix_width / len(widths)
    ids = max(_inches(str(client)) for client in mix.clients) if lines else 0.1
    left = max(0.5 + ids, 0.3 + _inches(f"{mix.available.max():,}"))
    page = Page(left, 0, matrix_width, matrix_height, [], [], [], dots, lines, vertical)
    inches = page.width - 0.5
    above = textwrap.wrap(title, int(inches / 0.092)), textwrap.wrap(words.sentence(mix), int(inches / 0.07))
    notes = textwrap.wrap(_note(mix, dots), int(inches / 0.055))
    bottom = 0.45 + 0.14 * len(notes) + max(0.15, max(widths) if vertical else 0.0)
    return replace(page, bottom=bottom, title=above[0], subtitle=above[1], notes=notes)


def _note(mix: Mix, dots: bool) -> str:
    """How to read the picture."""
    area = f"The area of a dot is a number of examples, {mix.counts.max():,} for the largest. " if dots else ""
    whole = "" if mix.examined_all else f"{mix.num_examined:,} clients, spread evenly over all {mix.num_clients:,}, were examined. "
    return (
        f"{area}{whole}Divergence: Jensen-Shannon, between the {mix.unit} shares of a client and those of all training images; "
        f"0 is alike, 1 nothing in common; the dotted line is chance alone, {mix.by_chance:.2f}."
    )


def _inches(text: str) -> float:
    """Width of a line of text in the small size of this page."""
    return float(TextPath((0, 0), text, size=8).get_extents().width) / 72 if text.strip() else 0.0


def labelled_classes(mix: Mix) -> Ints:
    """Classes whose names are written, evenly spaced where they are many."""
    if mix.num_classes <= MOST_NAMES:
        return np.arange(mix.num_classes)
    return np.arange(0, mix.num_classes, -(-mix.num_classes // MOST_NAMES))


def class_labels(mix: Mix) -> list[str]:
    """The names of these classes, short enough for labels."""
    return [words.plain(mix.class_names[number], 26) for number in labelled_classes(mix)]
