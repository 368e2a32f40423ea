"""Arguments that several commands share."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flora_hpc import plugins
from flora_hpc.errors import UserError

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, or the name of a bundled one such as quickstart")]
OptionalConfig = Annotated[
    Path | None, typer.Argument(metavar="[CONFIG]", help="YAML file; by default flora-tiny on the digits", show_default=False)
]
Overrides = Annotated[list[str] | None, typer.Option("-s", "--set", metavar="KEY=VALUE", help="override one key; may be repeated")]
Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        envvar="FLORA_HPC_PLUGINS",
        show_default=False,
        help="add your own method, partitioner, ... from a Python file or a folder of such; may be repeated",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="run directory, or its run.h5")]


class Device(StrEnum):
    """The device to compute on."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class View(StrEnum):
    """How to show a run. Under mpiexec the output is a pipe, so a live view must be requested there."""

    auto = "auto"
    live = "live"
    plain = "plain"


def has_terminal() -> bool:
    """Whether standard output is a terminal that can redraw."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def use_plugins(files: list[Path] | None) -> None:
    """Add the plugins in a user's files to their families. Raises UserError for a file without a plugin."""
    for file in files or []:
        plugins.use(file)


def whole_numbers(option: str, text: str, example: str) -> list[int]:
    """Parse '1,2,4': different numbers of at least 1. Raises UserError for anything else."""
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not word.isdecimal() or int(word) < 1:
            raise UserError(f"{option}: {word!r} is not a whole number of at least 1; give for example {option} {example}")
    numbers = [int(word) for word in words]
    for number in numbers:
        if numbers.count(number) > 1:
            raise UserError(f"{option}: names {number} twice; name it once")
    return numbers
