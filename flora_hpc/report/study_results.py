"""What a page of a study needs, read run by run: bands and final numbers of each setting. No run stays in memory."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from flora_hpc.errors import UserError
from flora_hpc.records.study import STATUSES, Point, Study
from flora_hpc.report import study_grid, study_words
from flora_hpc.report.study_bands import VALUES, Band, band
from flora_hpc.report.study_grid import Grid
from flora_hpc.report.study_words import Names
from flora_hpc.studies.statistics import Setting, Spread, settings

MOST_POINTS = 6000  # of all curves of one value


@dataclass(frozen=True)
class Group:
    """The finished points of a setting."""

    setting: Setting
    bands: dict[str, Band]  # by column of /rounds; values that were never measured have none

    @cached_property
    def final(self) -> Spread:
        """The final test accuracy."""
        return self.setting.spread("final_test_accuracy")

    @cached_property
    def validation(self) -> Spread:
        """The final validation accuracy."""
        return self.setting.spread("final_validation_accuracy")


@dataclass(frozen=True)
class Results:
    """A study as its page shows it."""

    study: Study
    names: Names
    groups: tuple[Group, ...]  # settings with a finished point, in the order of the grid
    grid: Grid  # of these settings
    unreadable: tuple[str, ...]  # sentences about runs that cannot be read

    @cached_property
    def failed(self) -> list[Point]:
        """The points that failed."""
        return [point for point in self.study.rows if point.status == "failed"]

    @cached_property
    def ranked(self) -> list[Group]:
        """The groups with a test accuracy, the best first."""
        return sorted((group for group in self.groups if group.final.n), key=lambda group: -group.final.mean)

    @cached_property
    def is_validated(self) -> bool:
        """Whether every setting has a validation accuracy: then it chooses between settings."""
        return all(group.validation.n for group in self.groups)

    def name(self, group: Group) -> str:
        """The text of a setting."""
        return self.names.setting(group.setting.keys, self.grid.keys)

    def best_of(self, groups: Iterable[Group]) -> Group | None:
        """The group with the best final accuracy, on validation images where every setting has one."""
        scores = [((group.validation if self.is_validated else group.final).mean, group) for group in groups]
        return max(
            ((score, group) for score, group in scores if not math.isnan(score)), key=lambda pair: pair[0], default=(0, None)
        )[1]


def check(study: Study, labels: Sequence[str] = ()) -> list[Setting]:
    """The settings with a finished point. Raises UserError where there is none, and for a label of what the study does not have."""
    study_words.names(study.rows, labels)
    chosen = [setting for setting in settings(study.rows) if any(point.status == "finished" for point in setting.points)]
    if not chosen:
        counts = ", ".join(f"{study.count(status)} {status}" for status in STATUSES if study.count(status)) or "it has no point"
        raise UserError(f"{study.path}: no point has finished yet ({counts}); make the page when one has")
    return chosen


def read(study: Study, labels: Sequence[str] = ()) -> Results:
    """Read what the page shows, run by run. Raises UserError like `check`."""
    chosen, names = check(study, labels), study_words.names(study.rows, labels)
    problems: list[str] = []
    most = max(24, MOST_POINTS // len(chosen) // 4)
    groups = tuple(_group(study, setting, most, problems) for setting in chosen)
    return Results(study, names, groups, study_grid.layout(chosen), tuple(problems))


def _group(study: Study, setting: Setting, most: int, problems: list[str]) -> Group:
    tables = []
    for point in setting.points:
        if point.status != "finished":
            continue
        try:
            run = study.run(point, ("rounds",))
        except UserError as error:
            problems.append(str(error))
            continue
        if run is None:
            problems.append(f"{point.name}: its run directory is gone; the table has its numbers, the curves lack it")
        else:
            tables.append(run.tables["rounds"])
    bands = {value: curve for value in VALUES if (curve := band(tables, value, most))}
    return Group(setting, bands)
