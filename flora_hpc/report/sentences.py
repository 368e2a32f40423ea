"""The caption of each figure, with the numbers that matter."""

from collections.abc import Sequence

import numpy as np
from rich.filesize import decimal

from flora_hpc.records import views
from flora_hpc.records.balance import balance
from flora_hpc.records.opened import Run
from flora_hpc.records.schema import DECILES
from flora_hpc.records.sentences import dataset
from flora_hpc.records.views import seconds
from flora_hpc.report import clientstats, columns, timing


def accuracy(run: Run) -> str:
    """Caption of the test accuracy of a run."""
    tests = views.accuracies(columns.rounds(run))
    best = views.best(tests)
    cut = " The axis does not start at zero." if tests["test_accuracy"].min() > 0.1 else ""
    text = "Share of test images that get the right class; round 0 is the state before training."
    return f"{text} Best: {columns.percent(best['test_accuracy'])} after round {best['round']:,}.{cut}"


def loss(run: Run) -> str:
    """Caption of the training loss of a run."""
    values = columns.with_loss(run)["train_loss"]
    first_last = f"{values[0]:.4g} in the first, {values[-1]:.4g} in the last"
    return f"Mean over the examples that clients trained on in a round: {first_last}."


def federation(run: Run) -> str:
    """Caption of the traffic of a federation."""
    rows = columns.rounds(run)
    up, down, _ = views.sent(rows)
    each = int(rows["uplink_bytes"].sum()) / max(1, int(rows["num_clients"].sum()))
    return f"What clients would send (up) and receive (down): {up} and {down} in all; an update has {decimal(round(each))}."


def collectives(run: Run) -> str:
    """Caption of the bytes that ranks sent."""
    (_, _, total), num = views.sent(columns.rounds(run)), int(run.attributes["world_size"])
    alone = num == 1 and not run.tables["ranks"]["rank"].any()  # nor before a resume
    whose = "handed over by the one rank, though nothing leaves it" if alone else "by all ranks together"
    return f"What ranks of the simulation give to collectives, which is not what a federation would send: {total} {whose}."


def phases(run: Run) -> str:
    """Caption of the stack of phases."""
    rows = columns.trained(run)
    text = "Means over ranks; the key says each phase's share of all rounds."
    if len(rows):
        text += f" A round takes {seconds(float(np.median(rows['round_seconds'])))} (median)."
    if len(rows) >= timing.MOST_ROUNDS:
        text += f" A step is the mean of about {len(rows) / timing.MOST_ROUNDS:.3g} rounds."
    return text + " Waiting for slower ranks is no communication."


def ranks(run: Run) -> str:
    """Caption of the ranks along time."""
    rows = run.tables["ranks"]
    if timing.is_strip(run):
        text = "A bar for each rank. Within a round its phases stand in the order of the key, not of the clock."
    else:
        text = "Denser means that the rank waited longer for others in that round."
    if not len(rows) or len(np.unique(rows["rank"])) == 1:
        return text + " One rank waits for nobody." * bool(len(rows))
    waits = np.bincount(rows["rank"], rows["wait_seconds"]) / np.maximum(np.bincount(rows["rank"], rows["round_seconds"]), 1e-12)
    least, most = int(waits.argmin()), int(waits.argmax())
    shares = [f"{100 * waits[rank]:.1f}\u00a0%" for rank in (least, most)]
    text += f" Rank {least} waits least ({shares[0]} of its time), rank {most} most ({shares[1]})."
    result = balance(rows)
    return f"{text} The slowest is rank {result.rank}: {result}." if result and result.num_last else text


def sizes(run: Run) -> str:
    """Caption of the examples of clients."""
    stats = clientstats.of(run)
    ids, counts, registered = stats.clients, stats.num_examples, int(run.attributes["num_clients"])
    who = f"{len(ids):,} clients trained" if len(ids) == registered else f"{len(ids):,} of {registered:,} clients trained"
    if "sample" in run.config.get("records", {}).get("clients", "all"):
        who = f"{len(ids):,} clients, a sample of each round's"
    if counts.min() == counts.max():
        return f"{who}; each holds {counts.min():,} examples."
    return f"{who}; they hold {counts.min():,} to {counts.max():,} examples, {np.median(counts):,.0f} in the median."


def labels(run: Run) -> str:
    """Caption of the classes of clients."""
    split = run.class_counts
    assert split is not None
    num_classes, num = (split.counts > 0).sum(1), int(run.attributes["num_clients"])
    who = f"{len(num_classes):,} of {num:,} clients, spread evenly over all; each" if len(num_classes) < num else "Each client"
    classes = (
        f"{num_classes.min():,}" if num_classes.min() == num_classes.max() else f"{num_classes.min():,} to {num_classes.max():,}"
    )
    return f"{who} holds {classes} of {len(split.classes):,} classes. Denser means a larger share; rows that look alike hold alike."


def personal(run: Run) -> str:
    """Caption of the accuracies of clients' own models."""
    last = views.personal(columns.rounds(run))[-1]
    own, common = (columns.percent(last[name]) for name in ("personal_accuracy_mean", "personal_global_mean"))
    first, ninth = (columns.percent(last[name]) for name in (DECILES[0], DECILES[-1]))
    return (
        "The clients of each tested round, each on its own mix of classes. "
        f"Last: {own} with own models (first decile {first}, ninth {ninth}), {common} with the server's adapter."
    )


def norms(run: Run) -> str:
    """Caption of the updates' norms."""
    rejected = int(columns.trained(run)["num_rejected"].sum())
    left_out = f"{rejected:,} updates were left out of the average" if rejected else "no update was left out of the average"
    return f"{_band(run, 'update_norm')}; {left_out}."


def train_seconds(run: Run) -> str:
    """Caption of the time that clients take."""
    return f"{_band(run, 'train_seconds')}. A client's time is its share, by steps, of the time of its group."


def _band(run: Run, column: str) -> str:
    low, high = clientstats.of(run).bands[column].ends
    outer = "the pale one all of them" if (low, high) == (0, 1) else f"the pale one the middle {100 * (high - low):.0f}\u00a0%"
    return f"The line is the median over clients, the dense band the middle half, {outer}"


def memory(run: Run) -> str:
    """Caption of the memory of ranks."""
    rows = run.tables["ranks"]
    most = rows[rows["peak_memory_bytes"].argmax()]
    peak = f"{decimal(int(most['peak_memory_bytes']))}, on rank {most['rank']}"
    return f"Peak of each process in host memory since it started, libraries included. Most: {peak}."


def accuracies(runs: Sequence[Run]) -> str:
    """Caption of the accuracies of several runs."""
    return "Share of test images that get the right class, by round. The axis is fitted to the curves." + _incomparable(runs)


def losses(runs: Sequence[Run]) -> str:
    """Caption of the losses of several runs."""
    return "Mean over the examples that clients trained on in a round. Different losses or data do not compare."


def by_bytes(runs: Sequence[Run]) -> str:
    """Caption of accuracy against bytes."""
    return "What an accuracy costs a federation: further up and to the left is better." + _incomparable(runs)


def by_seconds(runs: Sequence[Run]) -> str:
    """Caption of accuracy against time."""
    return "What an accuracy costs those who simulate it, start-up left out. Only runs on the same machines compare."


def bars(runs: Sequence[Run]) -> str:
    """Caption of the phases of several runs."""
    return "Means over ranks and trained rounds; the number at the end is the whole round."


def _incomparable(runs: Sequence[Run]) -> str:
    sets = dict.fromkeys(dataset(run.attributes) for run in runs)
    return f" The runs are on different data ({', '.join(sets)}): their accuracies do not compare." if len(sets) > 1 else ""
