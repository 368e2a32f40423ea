"""All figures of a report: their names, what draws them, and what says what one sees."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from flora_hpc.records.opened import Run
from flora_hpc.report import captions, clients, curves, timing, traffic


@dataclass(frozen=True)
class Drawing:
    """A figure of one run or of several. `draw` raises NothingError where there is nothing to see."""

    name: str  # of its file
    title: str
    draw: Callable[[Sequence[Run]], Figure]
    say: Callable[[Sequence[Run]], str]
    wide: bool = False


def _one(name: str, title: str, draw: Callable[[Run], Figure], say: Callable[[Run], str], wide: bool = False) -> Drawing:
    return Drawing(name, title, lambda runs: draw(runs[0]), lambda runs: say(runs[0]), wide)


ONE = {
    "What was learned": [
        _one("accuracy", "Test accuracy", lambda run: curves.accuracy([run]), captions.accuracy),
        _one("loss", "Training loss", lambda run: curves.loss([run]), captions.loss),
    ],
    "What was sent": [
        _one("federation-bytes", "What a federation would send", traffic.federation, captions.federation),
        _one("collective-bytes", "What ranks gave to collectives", traffic.collectives, captions.collectives),
    ],
    "Where the time went": [
        _one("phases", "Phases of each round", timing.phases, captions.phases, wide=True),
        _one("ranks", "Ranks along time", timing.ranks, captions.ranks, wide=True),
        _one("client-seconds", "How long clients train", clients.train_seconds, captions.train_seconds),
        _one("memory", "Memory of ranks", timing.memory, captions.memory),
    ],
    "Clients": [
        _one("client-sizes", "How much clients hold", clients.sizes, captions.sizes),
        _one("labels", "What clients hold", clients.labels, captions.labels),
        _one("update-norms", "How far updates go", clients.norms, captions.norms),
    ],
}
SEVERAL = {
    "What was learned": [
        Drawing("accuracy", "Test accuracy by round", curves.accuracy, captions.accuracies),
        Drawing("loss", "Training loss by round", curves.loss, captions.losses),
    ],
    "What it cost": [
        Drawing("accuracy-by-bytes", "Test accuracy by bytes", curves.accuracy_by_bytes, captions.by_bytes),
        Drawing("accuracy-by-seconds", "Test accuracy by time", curves.accuracy_by_seconds, captions.by_seconds),
        Drawing("phases", "Phases of a round", timing.split_bars, captions.bars, wide=True),
    ],
}


def of(runs: Sequence[Run]) -> dict[str, list[Drawing]]:
    """The figures for these runs, under the headings of a page."""
    return ONE if len(runs) == 1 else SEVERAL
