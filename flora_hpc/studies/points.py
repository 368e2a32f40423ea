"""The points of a study: a configuration, and the grid of values that makes many configurations of it.

base configuration (a file, its base files, -s key=value)        a nested mapping, not checked yet
    <-  one combination of `grid`, `zip` and `points`            dotted keys
    <-  one seed                                                 -> Config, and the name of its run directory
"""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flora_hpc import configfile, yamltext
from flora_hpc.config import CommConfig, Config
from flora_hpc.configtree import Layer, apply, copied, dotted, split_override
from flora_hpc.errors import UserError
from flora_hpc.records.study import RECIPE, Point
from flora_hpc.studies.grid import LISTS, Grid, combinations, section, sweep, with_sweeps

RANKS = "ranks_per_run"  # in place of a key: how many ranks play a point
MOST_NAME = 120  # characters; file systems take 255 bytes


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
    plugins: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # sentences that a user should read

    @property
    def comm(self) -> CommConfig:
        """How ranks communicate: the same for all points."""
        return self.planned[0].config.comm

    def to_yaml(self) -> str:
        """The text of study.yaml."""
        grid = self.grid.model_dump(exclude_defaults=True)
        return yamltext.dump({"config": self.config, "study": grid, "plugins": list(self.plugins)})


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
    tree = copied(tree)
    grid = with_sweeps(section(tree.pop("study", None), file), [sweep(text) for text in sweeps], seeds)
    given = dict(split_override(text) for text in overrides)
    notes = apply(tree, Layer(given))
    settings = combinations(grid)
    for key in dict.fromkeys(key for setting in settings for key in setting):
        if key in given:
            raise UserError(f"-s {key}: is also a key of the study's grid; give it in one of the two places")
        if key.partition(".")[0] == "comm":
            raise UserError(f"study: {key}: all runs of a study share the ranks and how they communicate; set it with -s")
    planned, more = _planned(tree, dict(origin), file, settings, grid.seeds)
    _refuse_equal(planned)
    tree = with_absolute_paths(tree, planned[0].config)
    return Recipe(tree, _with_absolute_values(grid, planned), tuple(planned), tuple(plugins), tuple(dict.fromkeys([*notes, *more])))


def read(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The study in a directory. Raises UserError where study.yaml is missing or damaged.

    `overrides`, of keys of comm, hold for this start alone: study.yaml stays as it is.
    """
    tree, plugins = _stored(folder)
    recipe = make(tree, {}, str(folder / RECIPE), overrides=overrides, plugins=plugins)
    return replace(recipe, config={key: value for key, value in tree.items() if key != "study"})


def _stored(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The configuration with its section `study`, and the files with own parts, of the study in a directory."""
    file = folder / RECIPE
    try:
        stored = yamltext.parse(yamltext.read(file))
        return stored["config"] | {"study": stored["study"]}, [str(path) for path in stored.get("plugins", [])]
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


def refuse_lost(before: Recipe, now: Recipe, folder: Path) -> None:
    """Raise UserError where `now` is no extension of the study `before`: it lacks points, or has another configuration."""
    configs = {item.point.name: item.config for item in now.planned}
    for item in before.planned:
        if item.point.name not in configs:
            raise UserError(
                f"--resume: the study in {folder} has the point {item.point.name}, which this grid lacks; "
                "give all its values and more, or another --out"
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
        setting = {key: _absolute(value, key, config) for key, value in setting.items()}
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
        raise UserError("study: seed is in the grid, and there are seeds, too; leave one of the two away")
    numbers = list(range(first, first + seeds)) if isinstance(seeds, int) else seeds
    for number in numbers:
        if type(number) is not int or not 0 <= number < 2**63:
            raise UserError(f"study: seeds: {number!r} is no seed; give whole numbers from 0 on")
    return numbers or [None]


def _absolute(value: Any, key: str, config: Config) -> Any:
    """A value of the grid; a relative path becomes absolute, as the configuration has it."""
    checked = dotted(config.model_dump(mode="json")).get(key) if isinstance(value, str) else None
    return checked if isinstance(checked, str) and checked.startswith("/") else value


def with_absolute_paths(tree: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """The nested mapping with absolute paths in place of relative ones, so that a study can be resumed from any directory."""
    checked = dotted(config.model_dump(mode="json"))

    def walk(branch: Any, prefix: str) -> Any:
        if isinstance(branch, dict):
            return {key: walk(value, f"{prefix}{key}.") for key, value in branch.items()}
        absolute = str(Path(branch).expanduser().absolute()) if isinstance(branch, str) else None
        return absolute if absolute is not None and checked.get(prefix[:-1]) == absolute else branch

    result: dict[str, Any] = walk(dict(tree), "")
    return result


def _with_absolute_values(grid: Grid, planned: Sequence[Planned]) -> Grid:
    """The grid with the absolute paths of its points in place of relative ones."""
    absolute = {(key, value) for item in planned for key, value in item.point.keys.items() if isinstance(value, str)}

    def value_of(key: str, value: Any) -> Any:
        path = str(Path(value).expanduser().absolute()) if isinstance(value, str) else None
        return path if (key, path) in absolute else value

    lists = {
        name: {key: [value_of(key, value) for value in values] for key, values in getattr(grid, name).items()} for name in LISTS
    }
    points = [{key: value_of(key, value) for key, value in point.items()} for point in grid.points]
    return grid.model_copy(update={**lists, "points": points})


def _refuse_equal(planned: Sequence[Planned]) -> None:
    """Raise UserError where two points are the same run."""
    first: dict[str, str] = {}
    for item in planned:
        text = item.config.model_dump_json()
        if text in first:
            raise UserError(f"study: {first[text]} and {item.point.name} are the same run; take one of the values out")
        first[text] = item.point.name


def name_of(point: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The name of a point's run directory, such as method=flora,lr=0.001,seed=3. `keys` are those of all points.

    A digest of the keys is added where the name alone might not be unique.
    """
    words = [f"{short(key, keys)}={_text(value)}" for key, value in point.items()]
    name = ",".join(words) or "base"
    safe = re.sub(r"[^\w.,=+-]", "-", name, flags=re.ASCII)
    if safe == name and len(safe) <= MOST_NAME:
        return safe
    digest = hashlib.blake2b(json.dumps(point, sort_keys=True).encode(), digest_size=4).hexdigest()
    return f"{safe[:MOST_NAME]},{digest}"


def short(key: str, keys: Sequence[str]) -> str:
    """The last word of a key, or the section of a name: `client.lr` is lr, `method.name` is method. In full where two are equal."""

    def word(key: str) -> str:
        section, _, last = key.rpartition(".")
        return section if last == "name" and section else last

    return key if [word(other) for other in keys].count(word(key)) > 1 else word(key)


def _text(value: Any) -> str:
    """A value as a part of a name."""
    if isinstance(value, str):
        return Path(value).name if value.startswith("/") else value
    return json.dumps(value, separators=(",", ":")).replace('"', "")
