"""The points of a study: a configuration, and the grid of values that makes many configurations of it.

base configuration (a file, its base files, -s key=value)        a nested mapping, not checked yet
    <-  one combination of `grid`, `zip` and `points`            dotted keys
    <-  one seed                                                 -> Config, and the name of its run directory
"""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from flora_hpc import configfile, yamltext
from flora_hpc.config import CommConfig, Config
from flora_hpc.configerrors import explain
from flora_hpc.configtree import Layer, apply, copied, dotted, split_override
from flora_hpc.errors import UserError
from flora_hpc.records.study import RECIPE, Point
from flora_hpc.strict import StrictModel

RANKS = "ranks_per_run"  # in place of a key: how many ranks play a point
MOST_POINTS = 100_000
MOST_NAME = 120  # characters; file systems take 255 bytes


class Grid(StrictModel):
    """The section `study` of a configuration."""

    grid: dict[str, list[Any]] = Field({}, description="dotted key -> values; every combination is a point")
    zip: dict[str, list[Any]] = Field({}, description="dotted key -> values; the first values of all keys go together, and so on")
    points: list[dict[str, Any]] = Field([], description="settings as dotted keys and values, each combined with grid and zip")
    seeds: int | list[int] = Field([], description="so many seeds, from the configuration's own one on, or a list of seeds")


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
    grid = with_sweeps(_section(tree.pop("study", None), file), [sweep(text) for text in sweeps], seeds)
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
    return Recipe(tree, grid, tuple(planned), tuple(plugins), tuple(dict.fromkeys([*notes, *more])))


def read(folder: Path) -> Recipe:
    """The study in a directory. Raises UserError where study.yaml is missing or damaged."""
    tree, plugins = _stored(folder)
    return make(tree, {}, str(folder / RECIPE), plugins=plugins)


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


def stored_plugins(folder: Path) -> list[Path]:
    """The user's files with own parts that a study was made with. Raises UserError like `read`."""
    return [Path(path) for path in _stored(folder)[1]]


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


def _section(section: Any, file: str) -> Grid:
    if section is None:
        return Grid()
    if not isinstance(section, dict):
        raise UserError(f"{file}: study: must hold keys such as 'grid: {{client.lr: [1.0e-4, 1.0e-3]}}'")
    try:
        return Grid.model_validate(section)
    except ValidationError as error:
        valid = [f"study.{name}" for name in Grid.model_fields]
        raise UserError("\n".join(f"{file}: {text}" for _, text in explain(error, "study.", valid))) from None


def with_sweeps(grid: Grid, sweeps: Sequence[tuple[str, list[Any]]], seeds: int | None) -> Grid:
    """The grid with the values and the number of seeds of the command line, which replace those of the same keys."""
    names = [key for key, _ in sweeps]
    if twice := [key for key in names if names.count(key) > 1]:
        raise UserError(f"{twice[0]}=: is given twice; give all its values in one list")
    if "seed" in names and seeds is not None:
        raise UserError("--seeds: the grid has seed=..., too; leave one of the two away")
    values = dict(sweeps)
    listed = values.pop("seed", None)
    if unlike := [key for key in values if key in grid.zip or any(key in point for point in grid.points)]:
        raise UserError(f"{unlike[0]}=: is in study.zip or study.points of the file; change it there")
    return grid.model_copy(
        update={"grid": grid.grid | values, "seeds": listed if listed is not None else seeds if seeds is not None else grid.seeds}
    )


def sweep(text: str) -> tuple[str, list[Any]]:
    """The key and the values of a text such as client.lr=1e-4,1e-3 or seed=range(0,5). A comma in brackets or quotes parts nothing.

    Raises UserError for other texts.
    """
    key, equals, rest = text.partition("=")
    if not equals or not key.strip() or not rest.strip():
        raise UserError(f"{text}: write key=value,value, for example client.lr=1e-4,1e-3")
    if numbers := re.fullmatch(r"\s*range\(\s*(-?\d+)\s*,\s*(-?\d+)\s*(?:,\s*([1-9]\d*)\s*)?\)\s*", rest):
        values: list[Any] = list(range(int(numbers[1]), int(numbers[2]), int(numbers[3] or 1)))
    else:
        values = [split_override(f"{key}={word}")[1] for word in _words(text, rest)]
    if not values:
        raise UserError(f"{text}: has no value; the end of a range is not part of it")
    return key.strip(), values


def _words(text: str, rest: str) -> list[str]:
    """The words between commas that are not inside brackets or quotes."""
    words, depth, quote = [""], 0, ""
    for letter in rest:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and not words[-1].strip(" [{"):
            quote = letter
        depth += (letter in "[{(") - (letter in "]})") if not quote else 0
        if letter == "," and not depth and not quote:
            words.append("")
        else:
            words[-1] += letter
    if any(not word.strip() for word in words):
        raise UserError(f"{text}: has an empty value between its commas; write null for none")
    return words


def combinations(grid: Grid) -> list[dict[str, Any]]:
    """The settings of a grid: dotted keys and values. The last key changes fastest. Raises UserError where its parts do not fit."""
    lengths = {key: len(values) for key, values in grid.zip.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"study.zip: the lists of {', '.join(f'{key} ({n})' for key, n in lengths.items())} must be equally long")
    for key, values in grid.grid.items():
        if not values:
            raise UserError(f"study.grid: {key}: has no value")
    zipped = [dict(zip(grid.zip, row, strict=True)) for row in zip(*grid.zip.values(), strict=True)] or [{}]
    products = [dict(zip(grid.grid, row, strict=True)) for row in itertools.product(*grid.grid.values())]
    seeds = grid.seeds if isinstance(grid.seeds, int) else len(grid.seeds)
    if (number := len(zipped) * len(products) * max(1, len(grid.points)) * max(1, seeds)) > MOST_POINTS:
        raise UserError(f"study: {number:,} points are more than {MOST_POINTS:,}; make several studies")
    settings = []
    for point, row, product in itertools.product(grid.points or [{}], zipped, products):
        if twice := (point.keys() & row.keys()) | (point.keys() & product.keys()) | (row.keys() & product.keys()):
            raise UserError(f"study: {sorted(twice)[0]} is in two of grid, zip and points; give it in one of them")
        settings.append(point | row | product)
    return settings


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
