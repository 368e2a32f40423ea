"""All figures of a report: their names, what draws them, and the sentence that says what one sees."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from rich.filesize import decimal

from flora_hpc.records.opened import Run
from flora_hpc.records.views import seconds
from flora_hpc.report import clients, curves, facts, timing, traffic


@dataclass(frozen=True)
class Drawing:
    """A figure of one run or of several. `draw` and `say` raise NothingError where there is nothing to see."""

    name: str  # of its file
    title: str
    draw: Callable[[Sequence[Run]], Figure]
    say: Callable[[Sequence[Run]], str]
    wide: bool = False


def _of_one(part: Callable[[Run], Figure]) -> Callable[[Sequence[Run]], Figure]:
    return lambda runs: part(runs[0])


def _accuracy(runs: Sequence[Run]) -> str:
    tested = facts.measured(runs[0])
    best = tested[tested["test_accuracy"].argmax()]
    text = f"Share of test images that get the right class; round 0 is the state before training. Best: {_percent(best['test_accuracy'])} after round {best['round']}."
    return text + (" The axis does not start at zero." if tested["test_accuracy"].min() > 0.1 else "")


def _loss(runs: Sequence[Run]) -> str:
    rows = facts.trained(runs[0])
    return f"Mean over the examples that clients trained on in a round: {rows['train_loss'][0]:.4g} in the first, {rows['train_loss'][-1]:.4g} in the last."


def _federation(runs: Sequence[Run]) -> str:
    rows, payload = facts.trained(runs[0]), int(runs[0].attributes["payload_bytes"])
    up, down = int(rows["uplink_bytes"].sum()), int(rows["downlink_bytes"].sum())
    return f"What clients would send (up) and receive (down): {decimal(up)} and {decimal(down)} in all, {decimal(payload)} a client and round each way."


def _collectives(runs: Sequence[Run]) -> str:
    rows = facts.rounds(runs[0])
    num = int(runs[0].attributes["world_size"])
    whose = "The one rank hands them over too, though nothing leaves it" if num == 1 else f"All {num} ranks together"
    return f"What the simulation's ranks hand to collectives, not what a federation would send: {decimal(int(rows['collective_bytes'].sum()))} in all. {whose}."


def _phases(runs: Sequence[Run]) -> str:
    rows = facts.trained(runs[0])
    each = f" A round takes {seconds(float(np.median(rows['round_seconds'])))} (median)." if len(rows) else ""
    many = (
        f" Each step is the mean of {-(-len(rows) // timing.MOST_ROUNDS)} or fewer rounds."
        if len(rows) >= timing.MOST_ROUNDS
        else ""
    )
    return f"Means over ranks; the key says each phase's share of all rounds.{each}{many} Waiting for slower ranks is no communication."


def _ranks(runs: Sequence[Run]) -> str:
    run = runs[0]
    rows = run.tables["ranks"]
    rows = rows[rows["round"] > 0]
    if not len(rows):
        return "Only the state before training is there."
    waits = np.bincount(rows["rank"], rows["wait_seconds"]) / np.maximum(np.bincount(rows["rank"], rows["round_seconds"]), 1e-12)
    if timing.is_strip(run):
        text = "A bar for each rank; within a round its phases stand in the order of the key, not of the clock. "
    else:
        text = "Denser means that the rank waited longer for others in that round. "
    if len(waits) == 1:
        return text + "One rank waits for nobody."
    least, most = int(waits.argmin()), int(waits.argmax())
    return (
        text
        + f"Rank {least} waits least ({_percent(waits[least])} of its time): the others wait for it; rank {most} waits most ({_percent(waits[most])})."
    )


def _sizes(runs: Sequence[Run]) -> str:
    rows = runs[0].tables["clients"]
    ids, first = np.unique(rows["client"], return_index=True)
    held = rows["num_examples"][first]
    registered = int(runs[0].attributes["num_clients"])
    who = f"{len(ids):,} clients trained" if len(ids) == registered else f"{len(ids):,} of {registered:,} clients trained"
    spread = (
        f"each holds {held.min():,} examples"
        if held.min() == held.max()
        else f"they hold {held.min():,} to {held.max():,} examples, {np.median(held):,.0f} in the median"
    )
    return f"{who}; {spread}."


def _labels(runs: Sequence[Run]) -> str:
    split = runs[0].split
    assert split is not None
    held = (split.to_numpy() > 0).sum(1)
    num = int(runs[0].attributes["num_clients"])
    shown = f"{len(split):,} of {num:,} clients, spread evenly over all; each" if len(split) < num else "Each client"
    classes = f"{held.min():,}" if held.min() == held.max() else f"{held.min():,} to {held.max():,}"
    return f"{shown} holds {classes} of {split.shape[1]:,} classes. Denser means a larger share; rows that look alike are clients that are alike."


def _norms(runs: Sequence[Run]) -> str:
    rejected = int(facts.trained(runs[0])["num_rejected"].sum())
    left_out = f" {rejected:,} updates were left out of the average." if rejected else " No update was left out."
    return f"{_band(runs[0])}{left_out} Norms that shrink tell of clients that agree with the adapter."


def _train_seconds(runs: Sequence[Run]) -> str:
    return f"{_band(runs[0])} A client's seconds are its share, by steps, of the time of its group."


def _band(run: Run) -> str:
    rows = run.tables["clients"]
    low, high = clients.ends(rows)
    outer = (
        "from the least to the most" if (low, high) == (0, 1) else f"{low:.0%} to {high:.0%}".replace("%", " %") + " of the clients"
    )
    return f"The line is the median over clients, the dense band the middle half, the pale one {outer}."


def _memory(runs: Sequence[Run]) -> str:
    rows = runs[0].tables["ranks"]
    most = rows[rows["peak_memory_bytes"].argmax()]
    return f"Of each process in host memory, since it started; libraries included. Most: {decimal(int(most['peak_memory_bytes']))} on rank {most['rank']}."


def _accuracies(runs: Sequence[Run]) -> str:
    return "Share of test images that get the right class, by round. The axis is fitted to the curves." + _beware(runs)


def _losses(runs: Sequence[Run]) -> str:
    return "Mean over the examples that clients trained on in a round. Losses of different kinds or data do not compare."


def _by_bytes(runs: Sequence[Run]) -> str:
    return "What an accuracy costs a federation: a curve further to the left and up is better." + _beware(runs)


def _by_seconds(runs: Sequence[Run]) -> str:
    return "What an accuracy costs on the machines that simulated it; start-up is left out. It compares runs on the same machines only."


def _bars(runs: Sequence[Run]) -> str:
    return "Mean of the trained rounds, over ranks; the number at the end is the whole round."


def _beware(runs: Sequence[Run]) -> str:
    sets = dict.fromkeys(str(run.attributes["dataset"]) for run in runs)
    return f" The runs are on different data ({', '.join(sets)}), where accuracies do not compare." if len(sets) > 1 else ""


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %" if share >= 0.1 else f"{100 * share:.2g} %"


LEARNED = [
    Drawing("accuracy", "Test accuracy", curves.accuracy, _accuracy),
    Drawing("loss", "Training loss", curves.loss, _loss),
]
SENT = [
    Drawing("federation-bytes", "What a federation would send", _of_one(traffic.federation), _federation),
    Drawing("collective-bytes", "What ranks handed to collectives", _of_one(traffic.collectives), _collectives),
]
TIME = [
    Drawing("phases", "Where each round's time went", _of_one(timing.phases), _phases, wide=True),
    Drawing("ranks", "Ranks along time", _of_one(timing.ranks), _ranks, wide=True),
    Drawing("memory", "Memory", _of_one(timing.memory), _memory),
    Drawing("client-seconds", "How long clients train", _of_one(clients.train_seconds), _train_seconds),
]
CLIENTS = [
    Drawing("client-sizes", "How much clients hold", _of_one(clients.sizes), _sizes),
    Drawing("labels", "What clients hold", _of_one(clients.labels), _labels),
    Drawing("update-norms", "How far updates go", _of_one(clients.norms), _norms),
]
ONE = {"What was learned": LEARNED, "What was sent": SENT, "Where the time went": TIME, "Clients": CLIENTS}
SEVERAL = {
    "What was learned": [
        Drawing("accuracy", "Test accuracy by round", curves.accuracy, _accuracies),
        Drawing("loss", "Training loss by round", curves.loss, _losses),
    ],
    "What it cost": [
        Drawing("accuracy-by-bytes", "Accuracy against bytes", curves.accuracy_by_bytes, _by_bytes),
        Drawing("accuracy-by-seconds", "Accuracy against time", curves.accuracy_by_seconds, _by_seconds),
        Drawing("phases", "Where a round's time went", timing.split_bars, _bars, wide=True),
    ],
}


def of(runs: Sequence[Run]) -> dict[str, list[Drawing]]:
    """The figures for these runs, under the headings of a page."""
    return ONE if len(runs) == 1 else SEVERAL
