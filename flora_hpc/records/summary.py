"""The closing table: what was run, what came out, what it cost; for the end of a run, and for `show`."""

from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from flora_hpc.records.schema import Rows
from flora_hpc.records.views import PER_CLIENT, accuracies, left_out, per_client, seconds, time_split

WORK = ("batch_seconds", "train_seconds", "sum_seconds")  # of a rank, for its own clients


def summary(rounds: Rows, facts: dict[str, str], title: str, caption: str | None = None, width: int = 80) -> RenderableType:
    """`rounds` are the rows of /rounds so far; `facts` stand above what they say."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (facts | accuracy_facts(rounds) | cost_facts(rounds)).items():
        table.add_row(name, Text(value, "bold" if name == "test accuracy" else ""))
    if said := left_out(rounds):
        table.add_row("rejected", Text(said, "red"))
    parts: list[RenderableType] = [Text(title, "bold"), table]
    if len(trained := rounds[rounds["round"] > 0]):
        parts += [Text(), time_split(trained, min(width, 80))]
    return Group(*parts, *([Text(caption, "dim")] if caption else []))


def accuracy_facts(rounds: Rows) -> dict[str, str]:
    """From what to what."""
    facts, measured = {}, accuracies(rounds)
    if len(measured):
        first, last, best = measured[0], measured[-1], measured[measured["test_accuracy"].argmax()]
        top = f"best {best['test_accuracy']:.4f} in round {best['round']}"
        facts["test accuracy"] = f"{first['test_accuracy']:.4f} → {last['test_accuracy']:.4f}  ({top})"
        before, after = 1 - first["test_accuracy"], 1 - last["test_accuracy"]
        if 0 < after < before:
            facts["test error"] = f"{before:.4f} → {after:.4f}  ({before / after:.1f} times smaller)"
    if per_client(measured):
        mean, spread, least, worst = (measured[-1][name] for name in PER_CLIENT)
        facts["clients' accuracy"] = f"mean {mean:.4f}, standard deviation {spread:.4f}, worst {least:.4f} (client {worst})"
    return facts


def cost_facts(rounds: Rows) -> dict[str, str]:
    """Rounds, seconds and bytes."""
    trained = rounds[rounds["round"] > 0]
    if not len(trained):
        return {}
    sent = (f"{decimal(int(trained[f'{way}link_bytes'].sum()))} {way}" for way in ("up", "down"))
    return {
        "rounds": f"{len(trained):,}, {seconds(float(np.median(trained['round_seconds'])))} each (median)",
        "time": seconds(float(rounds["round_seconds"].sum())) + " in rounds",
        "federation": ", ".join(sent),
        "ranks sent": f"{decimal(int(trained['collective_bytes'].sum()))} handed to collectives",
    }


def rank_facts(ranks: Rows, topology: Rows) -> dict[str, str]:
    """Which rank had most to do, how well the work was spread, and the largest memory."""
    facts: dict[str, str] = {}
    trained = ranks[ranks["round"] > 0]
    numbers = np.unique(trained["rank"])
    if len(numbers) > 1:
        busy = np.array([work_seconds(trained[trained["rank"] == number]) for number in numbers])
        mean, most = busy.mean() or 1.0, int(busy.argmax())
        slowest = f"rank {numbers[most]}{host_of(topology, int(numbers[most]))}"
        facts["slowest rank"] = f"{slowest}: {seconds(busy[most])} of work, {busy[most] / mean - 1:.0%} above the mean"
        facts["balance"] = f"{mean / (busy[most] or 1.0):.0%} (mean of the ranks' work / the slowest rank's)"
    if len(ranks):
        largest = ranks[ranks["peak_memory_bytes"].argmax()]
        where = f" (rank {largest['rank']})" if len(topology) > 1 else ""
        facts["peak memory"] = decimal(int(largest["peak_memory_bytes"])) + where
    return facts


def work_seconds(rows: Rows) -> float:
    """What ranks spent on their own clients; files of old versions count all of it as training."""
    return float(sum(rows[name].sum() for name in WORK if name in (rows.dtype.names or ())))


def host_of(topology: Rows, rank: int) -> str:
    """' on node1', or nothing when it is not known."""
    found: list[Any] = topology["host"][topology["rank"] == rank].tolist()
    return f" on {found[0].decode()}" if found else ""
