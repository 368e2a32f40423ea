"""`flora-hpc list`: what can be chosen in a configuration."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flora_hpc import plugins
from flora_hpc.errors import UserError, did_you_mean


def list_(
    family: Annotated[str | None, typer.Argument(help="one family; all when not given", show_default=False)] = None,
) -> None:
    """Show methods, datasets, partitioners, aggregators, backends and observers with their options."""
    if family is not None and family not in plugins.FAMILIES:
        raise UserError(f"no family '{family}'{did_you_mean(family, plugins.FAMILIES)} ({', '.join(plugins.FAMILIES)})")
    console = Console(highlight=False, soft_wrap=True)
    for name in [family] if family else plugins.FAMILIES:
        console.print(f"[bold]{name}[/]")
        for member in plugins.members(name):
            module = plugins.member(name, member)
            console.print(f"  [green]{member}[/]  {escape(str(module.__doc__).splitlines()[0])}")
            options = getattr(module, "Options", plugins.BaseOptions)
            for key, field in options.model_fields.items():
                if key == "name":
                    continue
                default = "required" if field.is_required() else f"{field.default}"
                console.print(f"    {key} = {escape(default)}  [dim]{escape(field.description or '')}[/]")
