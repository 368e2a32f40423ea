"""A run as things rich can print: a curve, a bar of where time went, a closing table."""

from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from flora_hpc.records.schema import Rows

PHASES = {
    "batch": "bright_green",
    "train": "green",
    "sum": "bright_cyan",
    "wait": "yellow",
    "comm": "magenta",
    "server": "cyan",
    "eval": "blue",
    "log": "white",
}
PER_CLIENT = ("client_accuracy_mean", "client_accuracy_std", "client_accuracy_min", "worst_client")  # with evaluate.per_client
EIGHTHS = " ▁▂▃▄▅▆▇█"


def seconds(value: float) -> str:
    """0.0123 -> '12.3 ms', 75 -> '1:15'."""
    if value < 1e-4:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1000:.1f} ms"
    if value < 60:
        return f"{value:.2f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count(number: int, what: str, many: str = "") -> str:
    """1 -> '1 round', 2000 -> '2,000 rounds'; `many` where an s does not do."""
    return f"{number:,} {what if number == 1 else many or what + 's'}"


def headline(rounds: Rows, status: str, num_rounds: int) -> list[str]:
    """A run in a few words: how it stands, how far it came, its accuracy."""
    done, measured = int(rounds["round"].max(initial=0)), accuracies(rounds)
    parts = [status, count(done, "round") if done == num_rounds else f"round {done:,} of {num_rounds:,}"]
    if len(measured):
        first, last = (f"{row['test_accuracy']:.4f}" for row in (measured[0], measured[-1]))
        parts.append(f"test accuracy {first}" + (f" → {last}" if len(measured) > 1 else ""))
    return parts


def accuracies(rounds: Rows) -> Rows:
    """The rows of /rounds in which the test accuracy was measured."""
    measured: Rows = rounds[~np.isnan(rounds["test_accuracy"])]
    return measured


def per_client(rounds: Rows) -> bool:
    """Whether clients were tested on their own, which runs do when asked, and those of old versions never."""
    return "worst_client" in (rounds.dtype.names or ()) and bool((rounds["worst_client"] >= 0).any())


def curve(values: Sequence[float], width: int, height: int = 6) -> Text:
    """Bars of `values` (0..1), the latest on the right, the axis fitted to what is shown and labelled."""
    if len(values) > width:  # the mean of equal stretches
        values = [float(np.mean(part)) for part in np.array_split(np.asarray(values), width)]
    top, bottom = min(1.0, np.ceil(max(values) * 20) / 20), max(0.0, np.floor(min(values) * 20) / 20 - 0.05)
    filled = [(value - bottom) / (top - bottom) * height if top > bottom else 0.0 for value in values]
    per_value = max(1, min(3, width // len(values)))
    text = Text()
    for row in range(height - 1, -1, -1):
        label = {height - 1: f"{top:5.0%} ", 0: f"{bottom:5.0%} "}.get(row, " " * 6)
        cells = (EIGHTHS[round(min(1.0, max(0.0, level - row)) * 8)] for level in filled)
        text.append(label, "dim").append("".join(cell * per_value for cell in cells), "green").append("\n" if row else "")
    return text


def time_split(rounds: Rows, width: int) -> Text:
    """One bar over `width` cells and its legend: the share of each phase in all seconds of `rounds`."""
    total = rounds["round_seconds"].sum() or 1.0
    known = [phase for phase in PHASES if f"{phase}_seconds" in (rounds.dtype.names or ())]  # files of old versions lack some
    shares = {phase: float(rounds[f"{phase}_seconds"].sum() / total) for phase in known}
    bar, legend = Text(), Text()
    ends = np.round(np.cumsum(list(shares.values())) * width).astype(int)
    for (phase, share), start, end in zip(shares.items(), [0, *ends[:-1]], ends, strict=True):
        bar.append("█" * (end - start), PHASES[phase])
        legend.append("■ ", PHASES[phase]).append(f"{phase} {share:.0%}  " if share >= 0.1 else f"{phase} {share:.1%}  ")
    return bar.append("\n").append(legend)


def summary(rounds: Rows, facts: dict[str, str], title: str, caption: str | None = None) -> RenderableType:
    """The closing table: what was run, what came out, what it cost. `rounds` are the rows of /rounds so far."""
    table = Table(title=Text(title), title_justify="left", show_header=False, pad_edge=False)
    if caption:
        table.caption, table.caption_justify = Text(caption), "left"
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(value))
    measured, trained = accuracies(rounds), rounds[rounds["round"] > 0]
    if len(measured):
        first, last, best = measured[0], measured[-1], measured[measured["test_accuracy"].argmax()]
        table.add_row(
            "test accuracy",
            f"[bold]{first['test_accuracy']:.4f} → {last['test_accuracy']:.4f}[/]"
            f"  (best {best['test_accuracy']:.4f} in round {best['round']})",
        )
        before, after = 1 - first["test_accuracy"], 1 - last["test_accuracy"]
        if 0 < after < before:
            table.add_row("test error", f"{before:.4f} → {after:.4f}  ({before / after:.1f} times smaller)")
    if per_client(measured):
        mean, spread, least, worst = (measured[-1][name] for name in PER_CLIENT)
        table.add_row("clients' accuracy", f"mean {mean:.4f}, standard deviation {spread:.4f}, worst {least:.4f} (client {worst})")
    if len(trained):
        table.add_row("rounds", f"{len(trained)}, {seconds(float(np.median(trained['round_seconds'])))} each (median)")
        table.add_row("time", seconds(float(rounds["round_seconds"].sum())) + " in rounds")
        sent = (f"{decimal(int(trained[f'{way}link_bytes'].sum()))} {way}" for way in ("up", "down"))
        table.add_row("federation traffic", ", ".join(sent))
        table.add_row("sent by ranks", f"{decimal(int(trained['collective_bytes'].sum()))} handed to collectives")
        if rejected := int(trained["num_rejected"].sum()):
            table.add_row("left out", f"[red]{rejected} client updates that were not finite or too large[/]")
        return Group(table, time_split(trained, 60))
    return table
