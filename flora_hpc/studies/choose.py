"""The best setting of a study for each method, and the study that plays these settings with other seeds."""

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from flora_hpc import yamltext
from flora_hpc.errors import UserError, did_you_mean, reason
from flora_hpc.records import disk, views
from flora_hpc.records.study import RECIPE, Study
from flora_hpc.studies import table
from flora_hpc.studies.names import full
from flora_hpc.studies.statistics import Setting, settings

METHOD, VALIDATION = "method.name", "final_validation_accuracy"
MOST_SEEDS = 2**63


@dataclass(frozen=True)
class Choice:
    """The chosen settings, and sentences on what a reader has to know about the choice."""

    metric: str
    settings: list[Setting]
    notes: list[str]


def metric_of(study: Study, name: str | None) -> str:
    """The accuracy to choose by: the one that the user names, or the final validation accuracy.

    Raises UserError where that was not measured: who chooses by test accuracy has to say so.
    """
    if name is not None:
        return table.metric_of(name, table.ACCURACIES)
    if any(not math.isnan(getattr(point, VALIDATION)) for point in study.rows if point.status == "finished"):
        return VALIDATION
    if not study.count("finished"):
        raise UserError(f"{study.path}: no point has finished, so there is nothing to choose from; see `flora-hpc study show`")
    raise UserError(
        f"{study.path}: no point has a validation accuracy, and a setting chosen by its test accuracy looks better than it is; "
        f"set data.validation_fraction: 0.1 and play the study again, or choose by test accuracy with --metric {table.DEFAULT}"
    )


def grouping(study: Study, names: str | None) -> list[str]:
    """The keys whose values get a best setting each: those that the user names, or the method's name where the grid has it.

    Raises UserError for a key that the grid does not set.
    """
    if names is None:
        return [METHOD] if METHOD in study.keys else []
    keys = [full(name.strip(), study.keys) for name in names.split(",")]
    for key in keys:
        if key not in study.keys:
            keys_text = ", ".join(study.keys) or "no key does"
            raise UserError(f"--by {key}: does not differ between the settings{did_you_mean(key, study.keys)} ({keys_text})")
    return keys


def best(study: Study, metric: str, by: Sequence[str]) -> Choice:
    """The setting with the highest mean of an accuracy for each combination of values of the keys `by`; the first of equal ones.

    Raises UserError where no finished point has this accuracy.
    """
    groups: dict[str, list[Setting]] = {}
    for setting in settings(study.rows):
        keys = {key: setting.keys[key] for key in by if key in setting.keys}
        groups.setdefault(table.words(keys, ", "), []).append(setting)
    best_settings, without, num_points = [], [], set()
    for words, group in groups.items():
        candidates = [setting for setting in group if setting.spread(metric).n]
        num_points |= {setting.spread(metric).n for setting in candidates}
        best_settings += [max(candidates, key=lambda setting: setting.spread(metric).mean)] if candidates else []
        without += [] if candidates else [words or "any setting"]
    if not best_settings:
        raise UserError(f"{study.path}: no finished point has {metric}; see `flora-hpc study show`, or choose by another --metric")
    notes = [f"no finished point of {words} has {metric}" for words in without]
    all_settings = [setting for group in groups.values() for setting in group]
    num_dropped = sum(len(setting.values(metric)) > 0 and not setting.spread(metric).n for setting in all_settings)
    if num_dropped and not without:
        notes.append(f"{views.count(num_dropped, 'setting')} had no part in the choice: no finished point has {metric}")
    if waiting := len(study.rows) - study.count("finished"):
        notes.append(f"{views.count(waiting, 'point')} did not finish, and had no part in the choice")
    if len(num_points) > 1:
        notes.append(f"means are over {min(num_points)} to {max(num_points)} seeds; those of few seeds are less certain")
    if "validation" not in metric:
        notes.append("chosen on test images: the test accuracies of these settings look better than they are")
    return Choice(metric, best_settings, notes)


def other_seeds(study: Study, config: dict[str, Any], number: int) -> list[int]:
    """The `number` seeds after the highest one of the study; from 0 where there are no higher ones."""
    earlier_seeds = {int(point.keys.get("seed", config.get("seed", 0))) for point in study.rows}
    first = max(earlier_seeds, default=-1) + 1
    return list(islice((seed for seed in count(first if first + number <= MOST_SEEDS else 0) if seed not in earlier_seeds), number))


def recipe(study: Study) -> dict[str, Any]:
    """The contents of study.yaml. Raises UserError where there is none, as for loose runs."""
    path = study.path / RECIPE
    try:
        tree = yamltext.parse(yamltext.read(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); --then needs the directory of a study") from None
    except yamltext.YamlError as error:
        raise UserError(f"{path}: is not valid YAML ({error}); restore it, for --then needs it") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("config"), dict):
        raise UserError(f"{path}: has no section config; restore it, for --then needs it")
    return tree


def next_study(config: dict[str, Any], choice: Choice, seeds: Sequence[int], origin: str) -> str:
    """The YAML text of a study of the chosen settings with other seeds, on top of a configuration."""
    points = [setting.keys for setting in choice.settings]
    study = ({"points": points} if any(points) else {}) | {"seeds": list(seeds)}
    head = f"# The best settings by {choice.metric} of the study in {yamltext.inline(origin)}, with other seeds.\n"
    return head + yamltext.dump(config | {"study": study})


def write(path: Path, text: str) -> None:
    """Write a new file. Raises UserError where there is a file already, or where none can be written."""
    if path.exists():
        raise UserError(f"-o {path}: is there already; choose another name, or remove it")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        disk.commit(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise UserError(f"-o {path}: cannot be written ({reason(error)}); choose another place") from None
