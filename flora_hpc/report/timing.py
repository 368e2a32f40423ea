"""Where time went: phases of each round, of each rank, and of several runs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flora_hpc.records.opened import Run
from flora_hpc.records.schema import Rows
from flora_hpc.report import columns
from flora_hpc.report.style import (
    DENSE_AMBER,
    HALF,
    INK,
    PHASES,
    WIDE,
    NothingError,
    Numbers,
    blocks,
    legend_below,
    new,
    round_stretches,
    rounds_axis,
    seconds_unit,
    shade_key,
    shades,
    stretches,
)  # fmt: skip

MOST_ROUNDS = 160  # steps of the stack
MOST_CELLS = 160  # rounds times ranks that are drawn as a strip; more become a map
MOST_PICTURE = (96, 240)  # ranks and rounds of the map


def phases(run: Run) -> Figure:
    """Seconds of each round, stacked by phase; means over ranks."""
    rows = columns.rounds(run)
    _check_rows(rows)
    starts = round_stretches(rows["round"], MOST_ROUNDS)
    width = np.diff(np.append(starts, len(rows)))
    parts = {name: np.add.reduceat(values, starts) / width for name, values in columns.phase_seconds(rows).items()}
    edges = np.append(rows["round"][starts], rows["round"][-1] + 1) - 0.5
    figure, axes = new(WIDE, 3.0)
    unit, unit_name = seconds_unit(float(np.sum(list(parts.values()), 0).max()))
    gap = 0.06 if len(starts) <= 60 else 0.0
    below = np.zeros(len(starts))
    sums = {name: float(values.sum()) for name, values in columns.phase_seconds(rows).items()}
    total = sum(sums.values()) or 1.0
    for name, values in parts.items():
        blocks(
            axes,
            edges[:-1] + gap,
            edges[1:] - gap,
            below / unit,
            (below + values) / unit,
            PHASES[name],
            f"{name} {_percent(sums[name] / total)}",
        )
        below += values
    axes.set_ylim(0, 1.05 * below.max() / unit or 1)
    rounds_axis(axes, rows["round"])
    axes.set_ylabel(f"{unit_name} per round")
    legend_below(axes, 8, handlelength=1, handleheight=1, columnspacing=1.4)
    return figure


def ranks(run: Run) -> Figure:
    """Each rank's phases along time where they are few; else the share of waiting, rank by round."""
    rows = run.tables["ranks"]
    _check_rows(rows)
    num_ranks, num_rounds = int(rows["rank"].max()) + 1, len(np.unique(rows["round"]))
    return _strip(rows, num_ranks) if num_ranks * num_rounds <= MOST_CELLS else _map(rows, num_ranks)


def is_strip(run: Run) -> bool:
    """Whether `ranks` draws phases along time."""
    rows = run.tables["ranks"]
    return (int(rows["rank"].max(initial=0)) + 1) * len(np.unique(rows["round"])) <= MOST_CELLS


def _strip(rows: Rows, num_ranks: int) -> Figure:
    figure, axes = new(WIDE, 1.35 + 0.34 * num_ranks)
    rows = rows[np.lexsort((rows["round"], rows["rank"]))]
    before = starts(rows)
    end = float((before + rows["round_seconds"]).max())
    unit, unit_name = seconds_unit(end)
    left = before
    for name, values in columns.phase_seconds(rows).items():
        blocks(axes, left / unit, (left + values) / unit, rows["rank"] - 0.38, rows["rank"] + 0.38, PHASES[name], name)
        left = left + values
    first = rows[rows["rank"] == 0]
    for row, start in zip(first, before[rows["rank"] == 0], strict=True):
        axes.plot([start / unit] * 2, [-0.5, -0.42], color=INK, linewidth=0.8, clip_on=False)
        if len(first) <= 26 and row["round_seconds"] > 0.02 * end:
            axes.text(start / unit, -0.55, f"{row['round']}", size=7.5, va="bottom", ha="center")
    axes.set_ylim(num_ranks - 0.5, -0.5)
    axes.set_xlim(0, end / unit or 1)
    _ranks_axis(axes, num_ranks)
    axes.set_xlabel(f"time in rounds ({unit_name}); the numbers on top are rounds, where each begins")
    axes.grid(False)
    legend_below(axes, 8, handlelength=1, handleheight=1, columnspacing=1.4)
    return figure


def starts(rows: Rows) -> Numbers:
    """The second at which each row's round begins, the same for all ranks: when the slowest has finished the rounds before."""
    rounds, which = np.unique(rows["round"], return_inverse=True)
    longest = np.zeros(len(rounds))
    np.maximum.at(longest, which, rows["round_seconds"])
    begins: Numbers = (np.cumsum(longest) - longest)[which]
    return begins


def _map(rows: Rows, num_ranks: int) -> Figure:
    shares, first, last = waiting(rows, num_ranks)
    most = max(float(np.nanmax(shares)), 1e-3)
    figure, axes = new(WIDE, min(4.2, 1.6 + 0.2 * num_ranks))
    extent = (first - 0.5, last + 0.5, num_ranks - 0.5, -0.5)
    axes.imshow(shades(shares / most, DENSE_AMBER), aspect="auto", interpolation="nearest", extent=extent)
    axes.grid(False)
    rounds_axis(axes, np.array([first, last]))
    axes.set_xlim(first - 0.5, last + 0.5)
    _ranks_axis(axes, num_ranks)
    shade_key(axes, most, DENSE_AMBER, "share of the round spent waiting")
    return figure


def waiting(rows: Rows, num_ranks: int) -> tuple[Numbers, int, int]:
    """The share of time that ranks waited (num_ranks, num_rounds), many of them taken together; the first and the last round."""
    first, last = int(rows["round"].min()), int(rows["round"].max())
    shape = num_ranks, last - first + 1
    grid = [np.zeros(shape), np.zeros(shape)]
    for cells, name in zip(grid, ("wait_seconds", "round_seconds"), strict=True):
        np.add.at(cells, (rows["rank"], rows["round"] - first), rows[name])
    for axis, most in enumerate(MOST_PICTURE):
        grid = [np.add.reduceat(cells, stretches(shape[axis], most), axis) for cells in grid]
    with np.errstate(invalid="ignore"):
        return np.where(grid[1] > 0, grid[0] / grid[1], np.nan), first, last


def split_bars(runs: Sequence[Run]) -> Figure:
    """Mean seconds of a trained round of each run, by phase."""
    names = columns.names(runs)
    tables = [(name, columns.trained(run)) for name, run in zip(names, runs, strict=True)]
    if not any(len(rows) for _, rows in tables):
        raise NothingError("No round was trained in any of the runs.")
    means = [
        {phase: values.mean() if len(values) else 0.0 for phase, values in columns.phase_seconds(rows).items()}
        for _, rows in tables
    ]
    unit, unit_name = seconds_unit(max(sum(parts.values()) for parts in means))
    figure, axes = new(WIDE, 1.2 + 0.3 * len(runs))
    places = np.arange(len(runs))
    left = np.zeros(len(runs))
    for phase, colour in PHASES.items():
        values = np.array([parts[phase] for parts in means]) / unit
        blocks(axes, left, left + values, places - 0.36, places + 0.36, colour, phase)
        left += values
    for place, end in zip(places, left, strict=True):
        axes.annotate(f"{end:.3g}", (end, place), (4, 0), textcoords="offset points", va="center", size=8)
    axes.set_xlim(0, 1.08 * left.max() or 1)
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.set_yticks(places, names)
    axes.grid(False)
    axes.set_xlabel(f"mean {unit_name} of a round")
    legend_below(axes, 8, handlelength=1, handleheight=1, columnspacing=1.4)
    return figure


def memory(run: Run) -> Figure:
    """The most memory that each rank's process held."""
    rows = run.tables["ranks"]
    _check_rows(rows)
    peaks = np.zeros(int(rows["rank"].max()) + 1)
    np.maximum.at(peaks, rows["rank"], rows["peak_memory_bytes"])
    figure, axes = new(HALF, 3.0)
    if len(peaks) <= 24:
        axes.bar(np.arange(len(peaks)), peaks / 1e9, 0.66 if len(peaks) > 3 else 0.4, color=PHASES["eval"], linewidth=0)
        for rank, peak in enumerate(peaks) if len(peaks) <= 10 else ():
            axes.text(rank, peak / 1e9, f"{peak / 1e9:.2f}", ha="center", va="bottom", size=8)
        axes.set_xticks(np.arange(len(peaks)))
        axes.set_xlim(-0.7, len(peaks) - 0.3)
    else:
        starts = stretches(len(peaks), 400)
        edges = np.append(starts, len(peaks)) - 0.5
        axes.stairs(np.maximum.reduceat(peaks, starts) / 1e9, edges, fill=True, color=PHASES["eval"], linewidth=0)
        axes.set_xlim(-0.5, len(peaks) - 0.5)
    axes.set_ylim(0, 1.12 * peaks.max() / 1e9 or 1)
    axes.set_xlabel("rank")
    axes.set_ylabel("peak resident memory (GB)")
    return figure


def _ranks_axis(axes: Axes, num_ranks: int) -> None:
    step = max(1, -(-num_ranks // 16))
    axes.set_yticks(np.arange(0, num_ranks, step))
    axes.set_ylabel("rank")


def _check_rows(rows: Rows) -> None:
    if not len(rows):
        raise NothingError("No round was finished.")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"
