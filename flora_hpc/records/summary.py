"""The closing table of a run: settings, results and costs; for the end of `run`, and for `show`."""

from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from flora_hpc.records.balance import balance
from flora_hpc.records.schema import Rows
from flora_hpc.records.views import (
    PER_CLIENT,
    accuracies,
    backdoors,
    best,
    by_rank,
    cross_terms,
    dropped_updates,
    per_client,
    personal,
    seconds,
    sent,
    time_split,
    unmoved,
    validations,
)


def summary(console: Console, rounds: Rows, facts: dict[str, str], title: str, caption: str | None = None) -> RenderableType:
    """Make the table for `console`: `facts` first, then what `rounds`, the rows of /rounds so far, give."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (facts | accuracy_lines(rounds) | cost_lines(rounds)).items():
        table.add_row(name, Text(value, "bold" if name == "test accuracy" else ""))
    if rejected := dropped_updates(rounds):
        table.add_row("rejected", Text(rejected, "red"))
    if warning := unmoved(rounds):
        table.add_row("not learned", Text(warning, "yellow"))
    parts: list[RenderableType] = [Text(title, "bold"), table]
    if len(rounds):
        coloured = console.color_system is not None and not console.no_color
        parts += [Text(), time_split(rounds, min(console.width, 80), coloured)]
    return Group(*parts, *([Text(caption, "dim")] if caption else []))


def accuracy_lines(rounds: Rows) -> dict[str, str]:
    """Accuracy and error before and after training, and the accuracy of clients."""
    lines, measured = {}, accuracies(rounds)
    if len(measured):
        first, last, most = measured[0], measured[-1], best(measured)
        top = f"best {most['test_accuracy']:.4f} in round {most['round']}"
        lines["test accuracy"] = f"{first['test_accuracy']:.4f} → {last['test_accuracy']:.4f}  ({top})"
        before, after = 1 - first["test_accuracy"], 1 - last["test_accuracy"]
        if 0 < after < before:
            times = f"  ({before / after:.1f} times smaller)" if before / after >= 1.05 else ""
            lines["test error"] = f"{before:.4f} → {after:.4f}{times}"
    if len(chosen_on := validations(rounds)):
        values, most = chosen_on["validation_accuracy"], best(chosen_on, "validation_accuracy")
        top = f"best {most['validation_accuracy']:.4f} in round {most['round']}, test accuracy there {most['test_accuracy']:.4f}"
        lines["validation accuracy"] = f"{values[0]:.4f} → {values[-1]:.4f}  ({top})"
    if per_client(measured):
        mean, spread, least, worst = (measured[-1][name] for name in PER_CLIENT)
        lines["clients' accuracy"] = f"mean {mean:.4f}, standard deviation {spread:.4f}, worst {least:.4f} (client {worst})"
    if len(own := personal(rounds)):
        last = own[-1]
        spread = f"mean {last['personal_accuracy_mean']:.4f}, standard deviation {last['personal_accuracy_std']:.4f}"
        worst = f"worst {last['personal_accuracy_min']:.4f} (client {last['personal_worst_client']})"
        lines["personal accuracy"] = f"{spread}, {worst}, first decile {last['personal_decile_1']:.4f}"
        lines["server's adapter, same clients"] = f"mean {last['personal_global_mean']:.4f}"
    if len(cut := by_rank(rounds)):
        last = cut[-1]
        worst = f"lowest {last['rank_accuracy_min']:.4f} (clients of rank {last['worst_rank']})"
        lines["cut to clients' ranks"] = f"mean {last['rank_accuracy_mean']:.4f}, {worst}"
    if len(attacked := backdoors(rounds)):
        values = attacked["backdoor_success"]
        lines["backdoor"] = f"{values[0]:.4f} → {values[-1]:.4f} of triggered test images get the target (most {values.max():.4f})"
    if len(crossed := cross_terms(rounds)):
        last, most = crossed[-1], best(crossed, "cross_term")
        largest = f"largest {most['cross_term']:.3g} in round {most['round']}"
        lines["cross term"] = f"{last['cross_term']:.3g} of the mean of B A in round {last['round']}, {largest}"
    return lines


def cost_lines(rounds: Rows) -> dict[str, str]:
    """Rounds, seconds and bytes; sums are over all rounds, round 0 included."""
    if not len(rounds):
        return {}
    trained = rounds[rounds["round"] > 0]
    each = f", {seconds(float(np.median(trained['round_seconds'])))} each (median)" if len(trained) else ""
    up, down, collective = sent(rounds)
    return {
        "rounds": f"{len(trained):,}{each}",
        "time": seconds(float(rounds["round_seconds"].sum())) + " in rounds",
        "federation": f"{up} up, {down} down",
        "ranks sent": f"{collective} handed to collectives",
    }


def rank_lines(ranks: Rows, topology: Rows) -> dict[str, str]:
    """Which rank the others waited for, how well the work was spread, and the largest memory."""
    lines: dict[str, str] = {}
    if result := balance(ranks):
        host = f"rank {result.rank}{host_of(topology, result.rank)}: " if result.num_last else ""
        lines["slowest rank"] = f"{host}{result}"
        lines["balance"] = f"{result.share:.0%} (mean work of ranks / the slowest's, by round)"
    if len(ranks):
        largest = ranks[ranks["peak_memory_bytes"].argmax()]
        where = f" (rank {largest['rank']})" if len(topology) > 1 else ""
        lines["peak memory"] = decimal(int(largest["peak_memory_bytes"])) + where
    return lines


def host_of(topology: Rows, rank: int) -> str:
    """' on node1'; empty when the host is not known."""
    hosts: list[Any] = topology["host"][topology["rank"] == rank].tolist()
    return f" on {hosts[0].decode()}" if hosts else ""
