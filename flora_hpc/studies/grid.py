"""The grid of a study: the section `study` of a configuration, and values such as client.lr=1e-4,1e-3 on the command line."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field, ValidationError

from flora_hpc.configerrors import explain
from flora_hpc.configtree import split_override
from flora_hpc.errors import UserError
from flora_hpc.strict import StrictModel

MOST_POINTS = 100_000
LISTS = ("grid", "zip")  # fields with a list of values for each key


class Grid(StrictModel):
    """The section `study` of a configuration."""

    grid: dict[str, list[Any]] = Field({}, description="dotted key -> values; every combination is a point")
    zip: dict[str, list[Any]] = Field({}, description="dotted key -> values; the first values of all keys go together, and so on")
    points: list[dict[str, Any]] = Field([], description="settings as dotted keys and values, each combined with grid and zip")
    seeds: int | list[int] = Field([], description="so many seeds, from the configuration's own one on, or a list of seeds")


def section(content: Any, file: str) -> Grid:
    """The grid in the section `study` of a file, None where it has none. Raises UserError for mistakes."""
    if content is None:
        return Grid()
    if not isinstance(content, dict):
        raise UserError(f"{file}: study: must hold keys such as 'grid: {{client.lr: [1.0e-4, 1.0e-3]}}'")
    try:
        return Grid.model_validate(content)
    except ValidationError as error:
        valid = [f"study.{name}" for name in Grid.model_fields]
        raise UserError("\n".join(f"{file}: {text}" for _, text in explain(error, "study.", valid))) from None


def with_sweeps(grid: Grid, sweeps: Sequence[tuple[str, list[Any]]], seeds: int | None) -> Grid:
    """The grid with the values and the number of seeds of the command line, which replace those of the same keys."""
    names = [key for key, _ in sweeps]
    if twice := [key for key in names if names.count(key) > 1]:
        raise UserError(f"{twice[0]}=: is given twice; give all its values in one list")
    if "seed" in names and seeds is not None:
        raise UserError("--seeds: the grid has seed=..., too; leave one of the two out")
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
