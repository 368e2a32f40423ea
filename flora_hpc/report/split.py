"""A split of images over clients, drawn in the terminal or on a page."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flora_hpc import extras
from flora_hpc.data.images import Ints
from flora_hpc.data.mix import Floats, Mix, divergence
from flora_hpc.errors import UserError
from flora_hpc.records.views import EIGHTHS
from flora_hpc.report import words

MOST_ROWS = 30  # clients in the terminal
# the "light" scheme of Tol, "Colour Schemes" (SRON/EPS/TN/09-002): distinct to the colour-blind under black letters; and a violet
COLOURS = ("#77AADD", "#EE8866", "#EEDD88", "#44BB99", "#FFAABB", "#AAAA00", "#99DDFF", "#BB99DD", "#BBCC33", "#DDDDDD")
SHADES = " ·░▒▓█"
PARTS = "▏▎▍▌▋▊▉█"  # of a cell, from the left
SUFFIXES = (".png", ".svg")


def terminal(mix: Mix, width: int, facts: Mapping[str, str] | None = None) -> RenderableType:
    """Draw the split in `width` cells: a line a client (of many: the largest to the smallest), a key, and a closing table.

    `facts` (name: value), such as the dataset and the partitioner, open the closing table.
    """
    parts: list[RenderableType] = [_clients(mix, _rows(mix), width), Text(), _key(mix, width), Text()]
    if mix.num_clients > MOST_ROWS:
        parts += [_histograms(mix, width), Text()]
    return Group(*parts, _closing(mix, facts or {}), Text(words.sentence(mix), "bold"))


def figure(mix: Mix, path: Path, title: str) -> None:
    """Draw the split into a PNG or SVG file, under `title`. Raises UserError for another suffix, or when it cannot be written."""
    check(path)
    from flora_hpc.report import split_figure  # matplotlib takes a second

    split_figure.save(mix, path, title)


def check(path: Path) -> None:
    """Raise UserError unless `path` ends in .png or .svg, and matplotlib is installed."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: a picture is a .png or a .svg file, not '{path.suffix}'; end its name in one of these")
    extras.need("a picture", "matplotlib")


def _rows(mix: Mix) -> Ints:
    """The clients that get a line: all of them by id, or MOST_ROWS of them from the largest to the smallest."""
    if mix.num_shown <= MOST_ROWS:
        return np.arange(mix.num_shown)
    by_size: Ints = np.argsort(-mix.counts.sum(1), kind="stable")
    rows: Ints = by_size[np.linspace(0, mix.num_shown - 1, MOST_ROWS).round().astype(np.int64)]
    return rows


def _clients(mix: Mix, rows: Ints, width: int) -> Table:
    """A line for all training images, then a line for each client of `rows`."""
    counts, ids = mix.counts[rows], [f"{client}" for client in mix.clients[rows]]
    sizes, shares = counts.sum(1), counts / counts.sum(1, keepdims=True)
    size_bar, main, bar = _widths(mix, width)
    highest = _grouped(shares, bar).max()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    left = ("", f"shares of {mix.units}", *(["most of all"] if main else []))
    for heading in ("client", "examples", *left, mix.units, "divergence"):
        table.add_column(heading, justify="left" if heading in left else "right", no_wrap=True)
    overall = mix.available / mix.available.sum()
    blank = [""] if main else []
    table.add_row("all", f"{mix.available.sum():,}", "", _strip(overall, bar, highest), *blank, f"{(overall > 0).sum()}", "")
    table.add_row()
    for client, share, size, distance in zip(ids, shares, sizes.tolist(), divergence(counts, mix.available).tolist(), strict=True):
        most = [Text(f"{words.plain(mix.class_names[share.argmax()], main - 5)} {share.max():.0%}")] if main else []
        size_of = Text(_bar(size / sizes.max(), size_bar), "cyan")
        table.add_row(client, f"{size:,}", size_of, _strip(share, bar, highest), *most, f"{(share > 0).sum()}", f"{distance:.2f}")
    return table


def _widths(mix: Mix, width: int) -> tuple[int, int, int]:
    """Cells of the bar of sizes, of the name of the main class, and of the shares of classes."""
    size_bar, main = (14, 24) if width >= 110 else (8, 0)
    columns = [max(6, len(f"{mix.clients.max()}")), max(8, len(f"{mix.available.sum():,}")), size_bar, main, len(mix.units), 10]
    return size_bar, main, max(10, width - sum(columns) - 2 * (6 if main else 5))


def _strip(share: Floats, width: int, highest: float) -> Text:
    """Draw shares of classes (num_classes,): parts of a bar where classes are few, else cells, darker for a larger share."""
    text = Text(no_wrap=True)
    if len(share) <= len(COLOURS):
        for number, num_cells in enumerate(_cells(share, width)):
            text.append(str(number) * num_cells, f"black on {COLOURS[number]}")
        return text
    groups = _grouped(share[None], width)[0]
    levels = np.ceil(np.sqrt(groups / highest).clip(0, 1) * (len(SHADES) - 1)).astype(int)
    marks = "".join(SHADES[level] * (width // len(groups)) for level in levels)
    return text.append(marks, "blue")


def _cells(share: Floats, width: int) -> list[int]:
    """The number of `width` cells of each class: by its share, but at least one for a class with examples."""
    ideal = share * width
    cells = np.where(share > 0, np.maximum(1, np.floor(ideal)), 0).astype(int)
    while cells.sum() > width:
        cells[cells.argmax()] -= 1
    while cells.sum() < width:
        cells[np.where(share > 0, ideal - cells, -np.inf).argmax()] += 1
    return cells.tolist()  # type: ignore[no-any-return]


def _grouped(shares: Floats, most: int) -> Floats:
    """Shares (num_clients, num_classes) of neighbouring classes taken together, in at most `most` groups."""
    num_groups = min(shares.shape[1], most)
    starts = np.arange(num_groups) * shares.shape[1] // num_groups
    grouped: Floats = np.add.reduceat(shares, starts, axis=1)
    return grouped


def _bar(share: float, width: int) -> str:
    """A bar of `width` cells for 1, never empty."""
    eighths = max(1, round(share * width * 8))
    return PARTS[-1] * (eighths // 8) + (PARTS[eighths % 8 - 1] if eighths % 8 else "")


def _key(mix: Mix, width: int) -> RenderableType:
    """What the letters, shades and lines above mean."""
    names = [words.plain(name, 28) for name in mix.class_names]
    lines = []
    if mix.num_shown > MOST_ROWS or mix.num_clients > mix.num_shown:
        shown = min(mix.num_shown, MOST_ROWS)
        lines.append(Text(f"{shown} of {mix.num_clients:,} clients, spread evenly from the largest to the smallest", "dim"))
    if len(names) <= len(COLOURS):
        pairs = [(str(number), COLOURS[number], name) for number, name in enumerate(names)]
        key = [Text.assemble((f" {glyph} ", f"black on {colour}"), f" {name}" * (name != glyph)) for glyph, colour, name in pairs]
        return Group(*lines, Columns(key, padding=(0, 2)))
    per_mark = mix.num_classes / min(mix.num_classes, _widths(mix, width)[-1])
    marks = f"a {mix.unit}" if per_mark == 1 else f"{per_mark:.1f} neighbouring {mix.units}"
    lines.append(Text(f"each mark is {marks}, from {names[0]}, {names[1]} to {names[-1]}; denser means more", "dim"))
    return Group(*lines)


def _histograms(mix: Mix, width: int) -> Table:
    """Histograms of clients by size and by divergence from the mix of all images."""
    half = min(50, (width - 4) // 2)
    table = Table.grid(padding=(0, 4, 0, 0))
    table.add_row(Text("clients by number of examples", "dim"), Text("clients by divergence", "dim"))
    least, most = int(mix.sizes.min()), int(mix.sizes.max())
    table.add_row(
        _histogram(mix.sizes, least, most, half, (f"{least:,}", f"{most:,}")),
        _histogram(mix.divergences, 0, 1, half, ("0 as all images", "nothing in common 1")),
    )
    return table


def _histogram(values: Ints | Floats, low: float, high: float, width: int, ends: tuple[str, str]) -> Text:
    """Columns of the number of `values` (num_clients,) from `low` to `high`, three cells high, with `ends` written below."""
    if low == high:
        return Text(f"all {len(values):,} clients: {ends[0]}")
    bins = min(width, round(high - low) + 1) if high > 1 else width // 2
    counts, _ = np.histogram(values, bins, (low, high))
    text, per_bin = Text(no_wrap=True), width // bins
    for row in (2, 1, 0):
        filled = np.ceil(counts / counts.max() * 24) - 8 * row
        text.append("".join(EIGHTHS[int(level)] * per_bin for level in filled.clip(0, 8)) + "\n", "cyan")
    return text.append(ends[0] + ends[1].rjust(bins * per_bin - len(ends[0])), "dim")


def _closing(mix: Mix, facts: Mapping[str, str]) -> Table:
    table = Table(title="split of images over clients", title_justify="left", show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in {**facts, **words.details(mix)}.items():
        table.add_row(Text(name), Text(value))
    return table
