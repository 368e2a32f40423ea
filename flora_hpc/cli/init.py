"""`flora-hpc init`: a commented configuration to start from."""

from pathlib import Path
from typing import Annotated

import typer

from flora_hpc import bundled
from flora_hpc.errors import UserError, did_you_mean, reason


def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"one of {', '.join(bundled.STARTS)}")] = "quickstart",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="the new file; by default NAME.yaml", show_default=False)
    ] = None,
) -> None:
    """Write a commented configuration to start from. A file that exists is never replaced."""
    if name not in bundled.STARTS:
        raise UserError(f"init: no configuration '{name}'{did_you_mean(name, bundled.STARTS)} ({', '.join(bundled.STARTS)})")
    path = out or Path(f"{name}.yaml")
    text = bundled.names()[name].read_text()
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path}: exists already and is not replaced; name another file with --out") from None
    except FileNotFoundError:
        raise UserError(f"{path}: there is no folder {path.parent}; make the folder {path.parent} first") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reason(error)}); name another file with --out") from None
    print(f"{path} is written. Next: {bundled.STARTS[name].format(path)}")
