"""The points of a study: a configuration, and the grid of values that makes many configurations of it.

base configuration (a file, its base files, -s key=value)        a nested mapping, not checked yet
    <-  one combination of `grid`, `zip` and `points`            dotted keys
    <-  one seed                                                 -> Config, and the name of its run directory
"""

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flora_hpc import configfile, yamltext
from flora_hpc.config import CommConfig, Config
from flora_hpc.configtree import Layer, apply, copied, split_override
from flora_hpc.errors import UserError
from flora_hpc.identity import title
from flora_hpc.records.study import FOLDER, RECIPE, Point, newest
from flora_hpc.studies.grid import Grid, combinations, section, sweep, with_sweeps
from flora_hpc.studies.names import name_of
from flora_hpc.studies.paths import absolute, with_absolute_paths

RANKS = "ranks_per_run"  # in place of a key: how many ranks play a point


@dataclass(frozen=True)
class Planned:
    """A point before it is played."""

    point: Point
    config: Config
    num_ranks: int = 0  # that play it; 0: as many as the others


@dataclass(frozen=True)
class Recipe:
    """A study before it is played; study.yaml holds it."""

    config: dict[str, Any]  # the base configuration, nested
    grid: Grid
    planned: tuple[Planned, ...]
    plugins: tuple[str, ...] = ()  # files and folders of the user
    parts: Mapping[str, str] = field(default_factory=dict)  # the user's own parts that points name -> digest
    notes: tuple[str, ...] = ()  # sentences that a user should read

    @property
    def comm(self) -> CommConfig:
        """How ranks communicate: the same for all points."""
        return self.planned[0].config.comm

    def to_yaml(self) -> str:
        """The text of study.yaml."""
        grid = self.grid.model_dump(exclude_defaults=True)
        return yamltext.dump({"config": self.config, "study": grid, "plugins": list(self.plugins), "parts": dict(self.parts)})


def make(
    tree: dict[str, Any],
    origin: Mapping[str, str],
    file: str,
    sweeps: Sequence[str] = (),
    seeds: int | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
) -> Recipe:
    """Make a study of the configuration in `tree`, which may have a section `study`.

    `sweeps` are texts such as client.lr=1e-4,1e-3, which replace the section's values of that key. `overrides` are texts such as
    rounds=5. Raises UserError for mistakes in any point, and for two equal points.
    """
    tree, lists = copied(tree), [sweep(text) for text in sweeps]
    grid = with_absolute_paths(with_sweeps(section(tree.pop("study", None), file), lists, seeds))
    values = dict(split_override(text) for text in overrides)
    notes = apply(tree, Layer(values))
    tree = absolute(tree)
    settings = combinations(grid)
    for key in dict.fromkeys(key for setting in settings for key in setting):
        if key in values:
            raise UserError(f"-s {key}: is also a key of the study's grid; give it in one of the two places")
        if key.partition(".")[0] == "comm":
            raise UserError(f"study: {key}: all runs of a study share the ranks and how they communicate; set it with -s")
    if not any(settings) and not grid.seeds:
        notes.append("no key varies, so that the study has one point; add values such as client.lr=1e-4,1e-3, or --seeds N")
    planned, more = _planned(tree, dict(origin) | dict.fromkeys(values, "-s"), file, settings, grid.seeds)
    _refuse_equal(planned)
    parts = {title(part): part.digest for item in planned for part in configfile.own_parts(item.config)}
    return Recipe(tree, grid, tuple(planned), tuple(plugins), parts, tuple(dict.fromkeys([*notes, *more])))


def read(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The study in a directory. Raises UserError where study.yaml is missing or damaged.

    `overrides`, of keys of comm, hold for this start alone: study.yaml stays as it is.
    """
    tree, plugins, _ = _stored(folder)
    recipe = make(tree, {}, str(folder / RECIPE), overrides=overrides, plugins=plugins)
    return replace(recipe, config={key: value for key, value in tree.items() if key != "study"})


def _stored(folder: Path) -> tuple[dict[str, Any], list[str], dict[str, str]]:
    """The configuration with its section `study`, the files with own parts and the digests of these parts, of a study."""
    file = folder / RECIPE
    try:
        stored = yamltext.parse(yamltext.read(file))
        tree = stored["config"] | {"study": stored["study"]}
        return tree, [str(path) for path in stored.get("plugins", [])], dict(stored.get("parts", {}))
    except FileNotFoundError:
        raise UserError(
            f"{folder}: holds no study (looked for {file}); name the directory of a study, or a CONFIG to begin one"
        ) from None
    except (OSError, yamltext.YamlError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); give the study's CONFIG and grid again") from None


def refuse_missing_plugins(folder: Path, plugins: Sequence[Path]) -> None:
    """Raise UserError where the study was made with files of the user that are not among `plugins`.

    Code that a study names runs only after its user has named it.
    """
    if missing := [path for path in _stored(folder)[1] if path not in [str(file.absolute()) for file in plugins]]:
        files = " ".join(f"--plugin {shlex.quote(path)}" for path in missing)
        raise UserError(f"{folder}: was made with files of its user; where they are yours to run, add {files}")


def begin_changed_anew(folder: Path, now: Recipe) -> None:
    """Remove the runs of failed points whose own parts have changed since: they cannot be resumed with other code.

    Raises UserError where a point that did not fail was played with code that has changed.
    """
    parts = _stored(folder)[2]
    changed = {name for name, digest in parts.items() if now.parts.get(name, digest) != digest}
    for item in now.planned if changed else ():
        names = changed.intersection(title(part) for part in configfile.own_parts(item.config))
        row = newest(folder, item.point)
        if names and row.status not in ("failed", "waiting"):
            raise UserError(
                f"{min(names)}: changed since {item.point.name} in {folder} was played with it; "
                "put back what it was, or start a new study"
            )
        for path in (folder / FOLDER / item.point.name).glob("*") if names else ():
            if path.name in ("checkpoint", "run.h5"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def refuse_lost(before: Recipe, now: Recipe, folder: Path) -> None:
    """Raise UserError where `now` is no extension of the study `before`: it lacks points, or has another configuration."""
    configs = {item.point.name: item.config for item in now.planned}
    for item in before.planned:
        if item.point.name not in configs:
            raise UserError(
                f"--resume: the study in {folder} has the point {item.point.name}, which this grid lacks; "
                "give all its values and more, or another --out"
            )
        if configs[item.point.name].rounds < item.config.rounds:
            raise UserError(
                f"--resume: rounds: {configs[item.point.name].rounds}, but the study in {folder} has {item.config.rounds}; "
                "give as many or more, or another --out"
            )
        if differing := configfile.differences(item.config.essence(), configs[item.point.name].essence()):
            changes = "; ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in differing.items())
            raise UserError(
                f"--resume: the study in {folder} has another configuration: {changes}; give that one, or another --out"
            )


def _planned(
    tree: dict[str, Any], origin: dict[str, str], file: str, settings: list[dict[str, Any]], seeds: int | list[int]
) -> tuple[list[Planned], list[str]]:
    """Every point with its checked configuration, and notes. A setting is checked once, whatever its number of seeds."""
    keys = list(dict.fromkeys(key for setting in settings for key in setting if key != RANKS))
    planned, notes = [], []
    for setting in settings:
        setting = dict(setting)
        num_ranks = _num_ranks(setting.pop(RANKS, 0))
        config, more = configfile.check(copied(tree), origin, Layer(setting, "study:"), file)
        notes += more
        for seed in _seeds(seeds, config.seed, setting):
            point = setting if seed is None else setting | {"seed": seed}
            with_seed = config if seed is None else config.model_copy(update={"seed": seed})
            planned.append(Planned(Point(name_of(point, keys), point), with_seed, num_ranks))
    return planned, notes


def _num_ranks(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise UserError(f"study: {RANKS}: must be a whole number of ranks, not {value!r}")
    return value


def _seeds(seeds: int | list[int], first: int, setting: Mapping[str, Any]) -> list[int] | list[None]:
    """The seeds of a setting; [None] where the study names no seeds."""
    if "seed" in setting and seeds:
        raise UserError("study: seed is in the grid, and there are seeds, too; leave one of the two out")
    numbers = list(range(first, first + seeds)) if isinstance(seeds, int) else seeds
    for number in numbers:
        if type(number) is not int or not 0 <= number < 2**63:
            raise UserError(f"study: seeds: {number!r} is no seed; give whole numbers from 0 on")
    return numbers or [None]


def _refuse_equal(planned: Sequence[Planned]) -> None:
    """Raise UserError where two points are the same run."""
    first: dict[str, str] = {}
    for item in planned:
        text = item.config.model_dump_json()
        if text in first:
            raise UserError(f"study: {first[text]} and {item.point.name} are the same run; take one of the values out")
        first[text] = item.point.name
