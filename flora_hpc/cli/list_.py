"""`flora-hpc list`: what can be chosen in a configuration."""

from typing import Annotated

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape

from flora_hpc import plugins
from flora_hpc.config import Config, Section
from flora_hpc.errors import UserError, did_you_mean


def list_(family: Annotated[str | None, typer.Argument(help="one of them; all when not given", show_default=False)] = None) -> None:
    """Show what a configuration may hold: methods, datasets, partitioners, ... with their options, and the other sections."""
    names = [*plugins.FAMILIES, "configuration"]
    if family is not None and family not in names:
        raise UserError(f"no family '{family}'{did_you_mean(family, names)} ({', '.join(names)})")
    console = Console(highlight=False, soft_wrap=True)
    for name in [family] if family else names:
        console.print(f"[bold]{name}[/]")
        if name == "configuration":
            show_fields(console, Config, "", "  ")
            continue
        for member in plugins.members(name):
            module = plugins.member(name, member)
            console.print(f"  [green]{member}[/]  {escape(str(module.__doc__).splitlines()[0])}")
            show_fields(console, getattr(module, "Options", plugins.BaseOptions), "", "    ")


def show_fields(console: Console, model: type[BaseModel], prefix: str, indent: str) -> None:
    """One line per key: default and description. Sections of a section follow with their dotted keys; families do not."""
    for key, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            show_fields(console, kind, f"{prefix}{key}.", indent)
        elif key != "name" or prefix:
            default = "required" if field.is_required() else f"{field.default}"
            if not (isinstance(kind, type) and issubclass(kind, plugins.BaseOptions)):
                console.print(f"{indent}{prefix}{key} = {escape(default)}  [dim]{escape(field.description or '')}[/]")
