"""The panel that `run` and `watch` redraw: how far a run is, its curve, its bytes, where the time goes, the time left."""

from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flora_hpc.records.schema import Rows
from flora_hpc.records.views import accuracies, curve, flow, left_out, seconds, sent, time_split

WIDEST = 110  # cells; a curve of some rounds does not gain from more
RECENT = 20  # rounds that the time left is estimated from


@dataclass(frozen=True)
class Progress:
    """How far rank 0 is with its clients of a round."""

    done: int
    mine: int  # 0 when it is not known beforehand: groups go to whoever is idle
    cohort: int  # of all ranks


@dataclass(frozen=True)
class Seen:
    """All that the panel shows."""

    rounds: Rows  # of /rounds, so far
    num_rounds: int
    resumed_after: int = -1  # the last round before this start
    since: float = 0.0  # seconds since the last round ended
    progress: Progress | None = None
    note: str = ""


def panel(seen: Seen, width: int) -> Panel:
    """The panel, `width` cells wide."""
    inner, rounds = max(16, width - 4), seen.rounds
    measured = accuracies(rounds)["test_accuracy"]
    done = int(rounds["round"].max(initial=0))
    parts: list[RenderableType] = [flow(head(seen, done), inner), bar(seen, done, inner), Text()]  # a bar ends without a new line
    if len(measured) > 1:
        parts += [Text(), Text("test accuracy", "dim"), curve(measured.tolist(), inner - 6)]
    if len(rounds):
        parts += [Text(), flow(numbers(rounds), inner)]
        parts += [Text(), Text("where the time goes", "dim"), time_split(rounds, inner)]
    if said := left_out(rounds):
        parts += [Text(), Text(said, "red")]
    if seen.note:
        parts += [Text(), Text(seen.note, "yellow")]
    return Panel(Group(*parts), title="flora-hpc", title_align="left", border_style="dim", width=width)


def head(seen: Seen, done: int) -> list[Text]:
    """Round, clients, time passed and time left."""
    elapsed = float(seen.rounds["round_seconds"][seen.rounds["round"] > seen.resumed_after].sum()) + seen.since
    left = time_left(seen, done)
    items = [
        labelled("round", f"{done}/{seen.num_rounds}", "bold"),
        labelled("elapsed", clock(elapsed)),
        labelled("left", "?" if left is None else "none" if done == seen.num_rounds else clock(left)),
    ]
    if (now := seen.progress) and done < seen.num_rounds:
        whose = "clients" if now.mine == now.cohort else "rank 0's clients"
        of = f"/{now.mine:,}" if now.mine else f" (cohort {now.cohort:,})"
        items.insert(1, labelled(whose, f"{now.done:,}{of}"))
    return items


def clock(value: float) -> str:
    """A time that is redrawn while it passes: 12.3456 -> '12.3 s', 75 -> '1:15'."""
    return f"{value:.1f} s" if value < 60 else seconds(value)


def time_left(seen: Seen, done: int) -> float | None:
    """From the last rounds of this start; None before its first one."""
    played = seen.rounds[seen.rounds["round"] > max(0, seen.resumed_after)]["round_seconds"][-RECENT:]
    if not len(played):
        return None
    each = float(played.mean())
    return each * (seen.num_rounds - done) - min(seen.since, each)


def bar(seen: Seen, done: int, width: int) -> ProgressBar:
    """Rounds, and of the one that is played the share of clients."""
    now = seen.progress
    share = now.done / now.mine if now and now.mine and done < seen.num_rounds else 0.0
    return ProgressBar(max(1, seen.num_rounds), done + min(1.0, share), width=width, complete_style="green")


def numbers(rounds: Rows) -> list[Text]:
    """Accuracy, loss and bytes."""
    measured, loss = accuracies(rounds)["test_accuracy"], rounds["train_loss"][-1]
    up, down, collective = sent(rounds)
    return [
        labelled("accuracy", f"{measured[-1]:.4f}" if len(measured) else "-", "bold green"),
        labelled("loss", "-" if np.isnan(loss) else f"{loss:.4f}"),
        labelled("up", up),
        labelled("down", down),
        labelled("ranks sent", collective),
    ]


def labelled(name: str, value: str, style: str = "") -> Text:
    """A name and what it is now."""
    return Text.assemble((f"{name} ", "dim"), (value, style))


def heading(facts: dict[str, str]) -> RenderableType:
    """One line per fact, names aligned; longer ones go on under their beginning."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        grid.add_row(name, Text(value))
    return grid
