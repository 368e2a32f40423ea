"""Figures of clients: examples, classes, norms of updates, training time."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flora_hpc.records import views
from flora_hpc.records.opened import Run
from flora_hpc.records.schema import DECILES
from flora_hpc.report import clientstats
from flora_hpc.report.clientstats import ClientStats
from flora_hpc.report.style import (
    BLUE,
    DENSE_BLUE,
    GREEN,
    HALF,
    ORANGE,
    NothingError,
    legend_below,
    new,
    percent_axis,
    rounds_axis,
    seconds_unit,
    shade_key,
    shades,
    stretches,
)  # fmt: skip

MOST_BARS = 40  # clients with a bar of their own
FEW = 40  # rounds, up to which each one has a dot
MOST_PICTURE = (200, 200)  # clients and classes of the map
MOST_NAMES = 30


def sizes(run: Run) -> Figure:
    """Examples of each client that trained; of many clients, a histogram."""
    stats = _stats(run)
    ids, num_examples = stats.clients, stats.num_examples
    figure, axes = new(HALF, 3.0)
    if len(ids) <= MOST_BARS:
        order = np.argsort(-num_examples, kind="stable")
        axes.bar(np.arange(len(ids)), num_examples[order], 0.72, color=BLUE, linewidth=0)
        axes.set_xticks(np.arange(len(ids)), [str(client) for client in ids[order]], size=9 if len(ids) <= 20 else 6.5)
        axes.tick_params(axis="x", length=0)
        axes.set_xlabel("client, from the largest to the smallest")
        axes.set_ylabel("examples")
    else:
        low, high = int(num_examples.min()), int(num_examples.max())
        step = -(-(high - low + 1) // 40)  # whole numbers of examples, so that no bar counts more of them than its neighbours
        edges = np.arange(low, high + step + 1, step) - 0.5
        axes.hist(num_examples, edges.tolist(), color=BLUE, linewidth=0, rwidth=0.92)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("examples of a client")
        axes.set_ylabel("clients")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    return figure


def labels(run: Run) -> Figure:
    """The share of each class in a client's examples."""
    split = run.class_counts
    if split is None:
        raise NothingError(
            "The file does not say which classes clients hold: an older version wrote it, or images have captions and no classes."
        )
    counts = split.counts
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    few = len(shares) <= MOST_BARS
    if not few:
        shares = shares[np.lexsort((-shares.max(1), shares.argmax(1)))]
        starts = stretches(len(shares), MOST_PICTURE[0])
        shares = np.add.reduceat(shares, starts) / np.diff(np.append(starts, len(shares)))[:, None]
    starts = stretches(shares.shape[1], MOST_PICTURE[1])
    picture = np.add.reduceat(shares, starts, 1)
    figure, axes = new(HALF, 3.0 if not few else max(3.0, 1.2 + 0.15 * len(shares)))
    most = float(picture.max())
    num_clients, num_classes = counts.shape
    extent = (-0.5, num_classes - 0.5, (len(shares) if few else num_clients) - 0.5, -0.5)
    axes.imshow(shades((picture / most) ** 0.5, DENSE_BLUE), aspect="auto", interpolation="nearest", extent=extent)
    axes.grid(False)
    if num_classes <= MOST_NAMES:
        names = [name if len(name) <= 18 else f"{name[:17]}…" for name in split.classes]
        axes.set_xticks(np.arange(num_classes), names, rotation=90 if num_classes > 5 else 0, size=8)
        axes.tick_params(axis="x", length=0)
    else:
        axes.set_xlabel(f"{num_classes:,} classes")
    if few:
        axes.set_yticks(np.arange(num_clients), [str(client) for client in split.clients], size=8 if num_clients <= 20 else 6.5)
        axes.set_ylabel("client")
    else:
        axes.set_yticks([])
        axes.set_ylabel(f"{num_clients:,} clients, by main class")
    shade_key(axes, most, DENSE_BLUE, "share of the client's examples", 0.5)
    return figure


def norms(run: Run) -> Figure:
    """Norms of clients' updates, by round."""
    figure, axes = new(HALF, 3.0)
    _bands(axes, _stats(run), "update_norm", ORANGE, 1.0)
    axes.set_ylabel("Euclidean norm of an update")
    return figure


def personal(run: Run) -> Figure:
    """Accuracy of clients' own models on their mixes, by round, beside that of the server's adapter."""
    rows = views.personal(run.tables["rounds"])
    figure, axes = new(HALF, 3.0)
    if not len(rows):
        raise NothingError("No client's own model was tested: evaluate.personal asks for it.")
    number = rows["round"]
    dots: dict[str, Any] = {"marker": "o", "markersize": 3.2} if len(rows) <= FEW else {}
    axes.fill_between(
        number, rows[DECILES[0]], rows[DECILES[-1]], color=GREEN, alpha=0.18, linewidth=0, label="first to ninth decile"
    )
    axes.plot(number, rows["personal_accuracy_mean"], color=GREEN, label="own models, mean", **dots)
    axes.plot(number, rows["personal_accuracy_min"], color=GREEN, linestyle=(0, (1.2, 1.4)), label="own models, worst client")
    axes.plot(number, rows["personal_global_mean"], color=BLUE, label="server's adapter, mean", **dots)
    legend_below(axes, 2)
    rounds_axis(axes, number)
    names = (DECILES[0], DECILES[-1], "personal_accuracy_min", "personal_accuracy_mean", "personal_global_mean")
    percent_axis(axes, np.concatenate([rows[name] for name in names]))
    axes.set_ylabel("accuracy on the client's mix (%)")
    return figure


def train_seconds(run: Run) -> Figure:
    """Training time of clients, by round."""
    stats = _stats(run)
    figure, axes = new(HALF, 3.0)
    unit, unit_name = seconds_unit(float(stats.bands["train_seconds"].levels[-1:].max(initial=0)))
    _bands(axes, stats, "train_seconds", GREEN, unit)
    axes.set_ylabel(f"{unit_name} a client trains")
    return figure


def _bands(axes: Axes, stats: ClientStats, name: str, colour: str, unit: float) -> None:
    band = stats.band(name)
    rounds, (lowest, low, middle, high, highest) = band.middles, band.shown / unit
    if len(rounds) == 1:
        axes.vlines(rounds, lowest, highest, color=colour, alpha=0.35, linewidth=4)
        axes.vlines(rounds, low, high, color=colour, alpha=0.6, linewidth=10)
        axes.plot(rounds, middle, "o", color=colour)
    else:
        axes.fill_between(rounds, lowest, highest, color=colour, alpha=0.16, linewidth=0)
        axes.fill_between(rounds, low, high, color=colour, alpha=0.32, linewidth=0)
        axes.plot(rounds, middle, color=colour)
    rounds_axis(axes, stats.rounds)
    axes.set_ylim(0, 1.06 * float(highest.max()) or 1)


def _stats(run: Run) -> ClientStats:
    stats = clientstats.of(run)
    if not len(stats.clients):
        keeps_none = run.config.get("records", {}).get("clients") == "none"
        raise NothingError(
            "The file has no rows of clients: records.clients is none." if keeps_none else "No client has trained yet."
        )
    return stats
