"""All figures of a report: names, titles, drawing functions and captions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from flora_hpc.records import views
from flora_hpc.records.opened import Run
from flora_hpc.report import clients, columns, curves, sentences, timing, traffic


@dataclass(frozen=True)
class Drawing:
    """A figure of one run or of several. `draw` raises NothingError when there is nothing to draw."""

    name: str  # of its file
    title: str
    draw: Callable[[Sequence[Run]], Figure]
    caption: Callable[[Sequence[Run]], str]
    wide: bool = False


def _one(name: str, title: str, draw: Callable[[Run], Figure], caption: Callable[[Run], str], wide: bool = False) -> Drawing:
    return Drawing(name, title, lambda runs: draw(runs[0]), lambda runs: caption(runs[0]), wide)


ONE = {
    "What was learned": [
        _one("accuracy", "Test accuracy", lambda run: curves.accuracy([run]), sentences.accuracy),
        _one("loss", "Training loss", lambda run: curves.loss([run]), sentences.loss),
    ],
    "What was sent": [
        _one("federation-bytes", "What a federation would send", traffic.federation, sentences.federation),
        _one("collective-bytes", "What ranks gave to collectives", traffic.collectives, sentences.collectives),
    ],
    "Where the time went": [
        _one("phases", "Phases of each round", timing.phases, sentences.phases, wide=True),
        _one("ranks", "Ranks along time", timing.ranks, sentences.ranks, wide=True),
        _one("client-seconds", "How long clients train", clients.train_seconds, sentences.train_seconds),
        _one("memory", "Memory of ranks", timing.memory, sentences.memory),
    ],
    "Clients": [
        _one("client-sizes", "How much clients hold", clients.sizes, sentences.sizes),
        _one("labels", "What clients hold", clients.labels, sentences.labels),
        _one("update-norms", "How far updates go", clients.norms, sentences.norms),
    ],
}
SEVERAL = {
    "What was learned": [
        Drawing("accuracy", "Test accuracy by round", curves.accuracy, sentences.accuracies),
        Drawing("loss", "Training loss by round", curves.loss, sentences.losses),
    ],
    "What it cost": [
        Drawing("accuracy-by-bytes", "Test accuracy by bytes", curves.accuracy_by_bytes, sentences.by_bytes),
        Drawing("accuracy-by-seconds", "Test accuracy by time", curves.accuracy_by_seconds, sentences.by_seconds),
        Drawing("phases", "Phases of a round", timing.split_bars, sentences.bars, wide=True),
    ],
}


OF_SEVERAL_RANKS = ("ranks", "memory")  # figures that compare ranks
PERSONAL = _one("personal", "Clients' own models", clients.personal, sentences.personal)  # of runs with evaluate.personal


def drawings_of(runs: Sequence[Run]) -> dict[str, list[Drawing]]:
    """The figures for these runs, under the headings of a page."""
    if len(runs) > 1:
        return SEVERAL
    own = [PERSONAL] if len(views.personal(columns.rounds(runs[0]))) else []
    is_lone = runs[0].attributes.get("world_size") == 1
    times = [drawing for drawing in ONE["Where the time went"] if not (is_lone and drawing.name in OF_SEVERAL_RANKS)]
    return ONE | {"Where the time went": times, "Clients": [*own, *ONE["Clients"]]}
