"""The panel that `run` and `watch` redraw: how far a run is, its curve, its bytes, where the time goes, the time left."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flora_hpc.records.plot import axis, percent_limits, plot
from flora_hpc.records.schema import Rows
from flora_hpc.records.views import (
    ALWAYS,
    PHASES,
    accuracies,
    dropped_updates,
    flow,
    seconds,
    sent,
    share_words,
    shares,
    time_split,
    validations,
)

WIDEST = 220  # cells
LOWEST, MIDDLE, HIGHEST = 3, 8, 20  # lines of a plot: at least; before a table gets room; at most
NARROWEST = 50  # cells of each of two plots side by side, at least
LEAST_ROWS, MOST_ROWS = 3, 10  # of the table of the last rounds
GAP = 3  # cells between two plots or two columns
RECENT = 20  # rounds from which the time left is estimated


@dataclass(frozen=True)
class Progress:
    """How far rank 0 is with its clients of a round."""

    done: int
    num_local: int  # of rank 0; 0 when not known beforehand: idle ranks take the next group
    cohort: int  # of all ranks


@dataclass(frozen=True)
class PanelData:
    """The numbers and texts that the panel shows."""

    rounds: Rows  # of /rounds, so far
    num_rounds: int
    resumed_after: int = -1  # the last round before this start
    since: float = 0.0  # seconds since the last round ended
    progress: Progress | None = None
    note: str = ""


def panel(data: PanelData, width: int, height: int) -> Panel:
    """The panel for a terminal of this size. The last line of a terminal is the cursor's."""
    width = min(width, WIDEST)
    room = max(1, height - 3)  # less the frame
    lines = fit_lines(data, max(16, width - 4), room)[:room]
    return Panel(Group(*lines), title="flora-hpc", title_align="left", border_style="dim", width=width, height=len(lines) + 2)


def fit_lines(data: PanelData, width: int, room: int) -> list[RenderableType]:
    """The lines inside the panel: rounds, bar and remarks always, the rest by importance while `room` lines suffice."""
    rounds, done = data.rounds, int(data.rounds["round"].max(initial=0))
    top: list[RenderableType] = [*lines_of(flow(head(data, done), width)), bar(data, done, width)]
    remarks = ((dropped_updates(rounds), "red"), (data.note, "yellow"))
    remark_lines = [Text(part, style) for text, style in remarks for part in wrap(text, width)]
    if not len(rounds):
        return stacked([top, remark_lines], gaps=True)
    figures, curves, free = lines_of(flow(numbers(rounds), width)), curves_of(rounds, width), Lines(room)
    free.take(len(top) + len(figures) + len(remark_lines))
    time = [short_time(rounds, width)] if free.take(1) else []
    height = LOWEST if curves and free.take(LOWEST + 1) else 0
    gaps = free.take(1 + bool(height) + bool(time) + bool(remark_lines))
    long_time = [Text("where the time goes", "dim"), *lines_of(time_split(rounds, width))]
    if time and free.take(len(long_time) - 1):
        time = long_time
    has_axis = height > 0 and free.take(1)
    height += free.up_to(MIDDLE - height) if height else 0
    num_rows = min(len(rounds), free.count - 2 if gaps else 0, MOST_ROWS)  # below a gap and a heading
    table = last_rounds(rounds[-num_rows:], width) if num_rows >= LEAST_ROWS and free.take(num_rows + 2) else []
    height += free.up_to(HIGHEST - height) if height else 0
    plots = side_by_side([curve.lines(width_of(curves, width), height, has_axis) for curve in curves]) if height else []
    return stacked([top, plots, figures, table, time, remark_lines], gaps)


@dataclass
class Lines:
    """Lines of a terminal that are still free."""

    count: int

    def take(self, count: int) -> bool:
        """Take `count` lines, or none where there are fewer. Returns whether they were taken."""
        fits = count <= self.count
        self.count -= count if fits else 0
        return fits

    def up_to(self, count: int) -> int:
        """Take `count` lines, or all where there are fewer. Returns how many were taken."""
        granted = max(0, min(count, self.count))
        self.count -= granted
        return granted

    def cut(self, block: Sequence[RenderableType]) -> Sequence[RenderableType]:
        """Take lines for a block: as many of its first lines as are free, but not its heading alone."""
        return block[: self.up_to(len(block))] if min(len(block), self.count) > 1 else ()


def stacked(blocks: Sequence[Sequence[RenderableType]], gaps: bool) -> list[RenderableType]:
    """The lines of all blocks, with an empty line between two blocks where there are `gaps`."""
    lines: list[RenderableType] = []
    for block in filter(None, blocks):
        lines += [Text()] if lines and gaps else []
        lines += block
    return lines


def lines_of(text: Text) -> list[Text]:
    """Split a text into its lines."""
    return list(text.split("\n", allow_blank=True))


@dataclass(frozen=True)
class Curve:
    """A number by round, for a plot."""

    name: str
    rounds: Rows
    values: list[float]
    limits: tuple[float, float]
    label: str  # how a limit is written
    style: str

    def lines(self, width: int, height: int, has_axis: bool) -> list[Text]:
        """A heading, `height` lines of dots, and the numbers of the rounds where there is a place for them."""
        dots = plot(self.values, width, height, self.limits, self.label.format, self.style)
        return [Text(self.name, "dim"), *dots, *([axis(self.rounds, dots)] if has_axis else [])]


def curves_of(rounds: Rows, width: int) -> list[Curve]:
    """The test accuracy, and beside it the training loss where both have a place."""
    measured, trained = accuracies(rounds), rounds[np.isfinite(rounds["train_loss"])]
    accuracy, loss = measured["test_accuracy"].tolist(), trained["train_loss"].tolist()
    curves = []
    if len(measured) > 1:
        curves.append(Curve("test accuracy", measured, accuracy, percent_limits(accuracy), "{:.0%}", "green"))
    if len(trained) > 1 and (width >= 2 * NARROWEST or not curves):
        curves.append(Curve("training loss", trained, loss, (min(loss), max(loss)), "{:.4g}", "cyan"))
    return curves


def width_of(curves: Sequence[Curve], width: int) -> int:
    """Cells of one of these curves side by side."""
    return (width - GAP * (len(curves) - 1)) // max(1, len(curves))


def side_by_side(blocks: Sequence[list[Text]]) -> list[Text]:
    """Join blocks of equal height into one block."""
    lines = blocks[0]
    for block in blocks[1:]:
        width = max(line.cell_len for line in lines) + GAP
        for line, more in zip(lines, block, strict=True):
            line.pad_right(width - line.cell_len)
            line.append_text(more)
    return lines


def last_rounds(rounds: Rows, width: int) -> list[Text]:
    """A table of these rounds under a heading, with as many columns as fit."""
    columns = {
        "round": [str(row["round"]) for row in rounds],
        "accuracy": [number(row["test_accuracy"]) for row in rounds],
        **({"validation": [number(row["validation_accuracy"]) for row in rounds]} if len(validations(rounds)) else {}),
        "loss": [number(row["train_loss"]) for row in rounds],
        "time": [seconds(row["round_seconds"]) for row in rounds],
        **{phase: [seconds(row[f"{phase}_seconds"]) for row in rounds] for phase in ALWAYS},
        "clients": [f"{row['num_clients']:,}" for row in rounds],
        "up": [sent(row)[0] for row in rounds],
        "down": [sent(row)[1] for row in rounds],
        "ranks sent": [sent(row)[2] for row in rounds],
    }
    lines = [Text() for _ in range(len(rounds) + 1)]
    for name, cells in columns.items():
        widest = max(map(len, [name, *cells])) + (GAP if lines[0] else 0)
        if lines[0].cell_len + widest > width:
            break
        for line, (cell, style) in zip(lines, [(name, "dim"), *((cell, "") for cell in cells)], strict=True):
            line.append(f"{cell:>{widest}}", style)
    return lines


def number(value: float) -> str:
    """0.98333 -> '0.9833', NaN -> '-'."""
    return "-" if np.isnan(value) else f"{value:.4f}"


def short_time(rounds: Rows, width: int) -> Text:
    """The phases that take most of the time, on one line."""
    largest = sorted(shares(rounds).items(), key=lambda part: -part[1])
    words = [Text(share_words(*part), PHASES[part[0]]) for part in largest]
    return lines_of(flow([Text("time", "dim"), *words], width, 2))[0]


def head(data: PanelData, done: int) -> list[Text]:
    """Round, clients, time passed and time left."""
    elapsed = float(data.rounds["round_seconds"][data.rounds["round"] > data.resumed_after].sum()) + data.since
    left = time_left(data, done)
    items = [
        labelled("round", f"{done}/{data.num_rounds}", "bold"),
        labelled("elapsed", clock(elapsed)),
        labelled("left", "?" if left is None else "none" if done == data.num_rounds else clock(left)),
    ]
    if (now := data.progress) and done < data.num_rounds:
        whose = "clients" if now.num_local == now.cohort else "rank 0's clients"
        of = f"/{now.num_local:,}" if now.num_local else f" (cohort {now.cohort:,})"
        items.insert(1, labelled(whose, f"{now.done:,}{of}"))
    return items


def clock(value: float) -> str:
    """A time that is redrawn while it passes: 12.3456 -> '12.3 s', 75 -> '1:15'."""
    return f"{value:.1f} s" if value < 60 else seconds(value)


def time_left(data: PanelData, done: int) -> float | None:
    """Seconds to the end, estimated from the last rounds since this start; None before the first of them."""
    durations = data.rounds[data.rounds["round"] > max(0, data.resumed_after)]["round_seconds"][-RECENT:]
    if not len(durations):
        return None
    mean = float(durations.mean())
    return mean * (data.num_rounds - done) - min(data.since, mean)


def bar(data: PanelData, done: int, width: int) -> Text:
    """A bar of the rounds done and of the clients done in the current round; exact to half a cell."""
    now = data.progress
    part = now.done / now.num_local if now and now.num_local and done < data.num_rounds else 0.0
    return bar_of((done + min(1.0, part)) / max(1, data.num_rounds), width)


def bar_of(share: float, width: int) -> Text:
    """A bar of `width` cells of which a share is done; exact to half a cell."""
    full, half = divmod(round(2 * width * min(1.0, share)), 2)
    return Text.assemble(("━" * full + "╸" * half, "green"), ("─" * (width - full - half), "bright_black"))


def numbers(rounds: Rows) -> list[Text]:
    """Accuracy, loss and bytes."""
    measured, loss = accuracies(rounds)["test_accuracy"], rounds["train_loss"][-1]
    validation = validations(rounds)
    up, down, collective = sent(rounds)
    return [
        labelled("accuracy", f"{measured[-1]:.4f}" if len(measured) else "-", "bold green"),
        *([labelled("validation", f"{validation['validation_accuracy'][-1]:.4f}")] if len(validation) else []),
        labelled("loss", number(loss)),
        labelled("up", up),
        labelled("down", down),
        labelled("ranks sent", collective),
    ]


def labelled(name: str, value: str, style: str = "") -> Text:
    """A name and its value."""
    return Text.assemble((f"{name} ", "dim"), (value, style))


def heading(facts: dict[str, str]) -> RenderableType:
    """One line per fact with aligned names; long texts wrap under their beginning."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        grid.add_row(name, Text(value))
    return grid
