"""All figures of a study: names, titles, drawing functions and captions, under the headings of the page."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from flora_hpc.report import study_captions, study_curves, study_finals
from flora_hpc.report.study_results import Results
from flora_hpc.report.style import HALF, WIDE

NO_NAME = re.compile(r"[^\w.-]")  # characters that names of files lack
MOST_KEYS = 4  # numeric keys with a figure each


@dataclass(frozen=True)
class Drawing:
    """A figure of a study. `draw`, from its width in inches, and `caption` raise NothingError when there is nothing to draw."""

    name: str  # of its file
    title: str
    draw: Callable[[float], Figure]
    caption: Callable[[], str]
    wide: bool = False

    @property
    def width(self) -> float:
        """Inches on the page."""
        return WIDE if self.wide else HALF


def drawings(results: Results) -> dict[str, list[Drawing]]:
    """The figures of a study under the headings of its page. Some need several keys, or clients' own models."""
    sections = {
        "What was learned": [
            _curves(results, "accuracy", "Test accuracy by round"),
            _curves(results, "loss", "Training loss by round", "train_loss"),
            *_panels(results),
        ],
        "What it cost": [
            _curves(results, "accuracy-by-bytes", "Test accuracy by bytes", cost="bytes"),
            _curves(results, "accuracy-by-training", "Test accuracy by training time", cost="train_seconds"),
            _curves(results, "accuracy-by-seconds", "Test accuracy by time of whole rounds", cost="seconds"),
        ],
        "What the settings do": _finals(results),
    }
    if any("personal_accuracy_mean" in group.bands for group in results.groups):
        personal = _curves(results, "personal", "Clients' own models by round", "personal_accuracy_mean")
        sections["What was learned"].insert(2, personal)
    return sections


def _curves(results: Results, name: str, title: str, value: str = "test_accuracy", cost: str = "round") -> Drawing:
    draw = partial(study_curves.curves, results, value=value, cost=cost)
    return Drawing(name, title, draw, partial(study_captions.curves, results, value, cost))


def _panels(results: Results) -> list[Drawing]:
    if not results.grid.panels:
        return []
    keys = " and ".join(results.names.key(axis.key) for axis in results.grid.panels)
    draw, caption = partial(study_curves.panels, results), partial(study_captions.panels, results)
    return [Drawing("panels", f"Test accuracy by round, a panel for each {keys}", draw, caption, wide=True)]


def _finals(results: Results) -> list[Drawing]:
    drawn = [
        Drawing(
            f"final-by-{NO_NAME.sub('_', axis.key)}",
            f"Final accuracy against {results.names.key(axis.key)}",
            partial(study_finals.by_key, results, axis=axis),
            partial(study_captions.by_key, results, axis),
        )
        for axis in study_finals.numeric_keys(results)[:MOST_KEYS]
    ]
    if axes := study_finals.map_axes(results):
        across, up = (results.names.key(axis.key) for axis in axes)
        title = f"Final accuracy by {across} and {up}"
        draw, caption = partial(study_finals.heat_map, results), partial(study_captions.heat_map, results)
        drawn.append(Drawing("heat-map", title, draw, caption, wide=len(axes[0]) > 8))
    draw, caption = partial(study_finals.finals, results), partial(study_captions.finals, results)
    return [*drawn, Drawing("final", "Final accuracy by setting", draw, caption)]
