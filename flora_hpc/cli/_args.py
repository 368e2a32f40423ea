"""Arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, for example configs/quickstart.yaml")]
Overrides = Annotated[list[str] | None, typer.Option("-s", "--set", metavar="KEY=VALUE", help="override one key; may be repeated")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="run directory, or its run.h5")]
