"""`flora-hpc list`: what can be chosen in a configuration."""

from typing import Annotated

import numpy as np
import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flora_hpc import plugins
from flora_hpc.config import Config, Section
from flora_hpc.errors import UserError, did_you_mean


def list_(
    family: Annotated[str | None, typer.Argument(help="one of them; all when not given", show_default=False)] = None,
    model: Annotated[
        str | None, typer.Option(help="tell what each method trains of this model", show_default=False, metavar="NAME")
    ] = None,
    classes: Annotated[int, typer.Option(min=1, help="with --model: number of classes")] = 10,
) -> None:
    """Show what a configuration may hold: methods, datasets, partitioners, ... with their options, and the other sections."""
    if model is not None:
        if family not in (None, "methods"):
            raise UserError(f"--model tells of methods, not of {family}; leave one of the two out")
        show_sizes(model, classes)
        return
    names = [*plugins.FAMILIES, "configuration"]
    if family is not None and family not in names:
        section = family in Config.model_fields and not did_you_mean(family, names)
        where = "; it is a part of: flora-hpc list configuration" if section else did_you_mean(family, names)
        raise UserError(f"no family '{family}'{where} ({', '.join(names)})")
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


def show_sizes(model: str, classes: int) -> None:
    """Trained numbers and payload of every method with its default options; no weights are needed."""
    import torch  # with what follows, seconds of imports

    from flora_hpc.clip import load, weights
    from flora_hpc.config import ModelConfig
    from flora_hpc.data.shards import Partition
    from flora_hpc.methods._method import Method, Setting

    pretrained = None if model == weights.BUNDLED else "none"
    clip = load.load(ModelConfig(name=model, pretrained=pretrained), 0, torch.device("meta"))
    names = tuple(f"class {i}" for i in range(classes))
    one = Partition(np.arange(classes), np.array([0, classes]))
    setting = Setting(clip, names, tuple(f"a photo of a {name}." for name in names), one, np.arange(classes))
    title = Text(f"methods on {model}, {classes} classes, default options", "table.title")
    table = Table(title=title, title_justify="left")
    for heading in ("method", "trained numbers", "payload in bytes", "image tower"):
        table.add_column(heading, justify="left" if heading in ("method", "image tower") else "right")
    refused = []
    for name in plugins.members("methods"):
        module = plugins.member("methods", name)
        try:
            method: Method = module.build(module.Options(name=name), setting)
        except UserError as error:
            table.add_row(name, "-", "-", "-")
            refused.append(str(error).partition(": ")[2])
        else:
            trained = "frozen" if method.sees == "features" else "trained"
            table.add_row(name, f"{method.num_params:,}", f"{method.payload_bytes:,}", trained)
    console = Console()
    console.print(table)
    for reason in refused:
        console.print(f"- {reason}", highlight=False, markup=False)


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
