"""`flora-hpc list`: the families, members and options of a configuration."""

import ast
from collections import Counter
from contextlib import suppress
from importlib.abc import InspectLoader
from importlib.util import find_spec
from typing import Annotated

import numpy as np
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flora_hpc import plugins
from flora_hpc.cli import _algorithms
from flora_hpc.cli._args import Plugins, use_plugins
from flora_hpc.config import PARTS, Config, Section
from flora_hpc.errors import UserError, did_you_mean

CONFIGURATION = "configuration"
WIDE = 110  # columns of a terminal that has room for papers
MAX_COLUMNS = 600  # of tables for other outputs


def list_(
    name: Annotated[
        str | None,
        typer.Argument(help="a family such as datasets, one of its members, or a section of the configuration: all options"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="tell what each method trains of this model", show_default=False, metavar="NAME")
    ] = None,
    classes: Annotated[int, typer.Option(min=1, help="with --model: number of classes")] = 10,
    plugin: Plugins = None,
) -> None:
    """Show what a configuration may hold: the names of all methods, datasets, partitioners, ..., or the options of one of them."""
    use_plugins(plugin)
    if model is not None:
        if name not in (None, "methods"):
            raise UserError(f"--model tells of methods, not of {name}; leave one of the two out")
        show_sizes(model, classes)
        return
    console = Console(highlight=False)
    if name is None:
        show_names(console)
    elif name in plugins.FAMILIES:
        show_family(console, name)
    elif name == CONFIGURATION:
        show_section(console, name, Config, "")
    elif name in sections():
        show_section(console, name, sections()[name], f"{name}.")
    elif name in PARTS:
        _algorithms.show_section(console, name, str(Config.model_fields[name].description))
    elif families := [family for family in plugins.FAMILIES if name in plugins.members(family)]:
        for family in families:
            show_member(console, family, name)
    else:
        members = [*PARTS] + [member for family in plugins.FAMILIES for member in plugins.members(family)]
        first = [*plugins.FAMILIES, CONFIGURATION, *sections()]
        near = did_you_mean(name, first) or did_you_mean(name, members)
        raise UserError(f"no family, member or section '{name}'{near}; flora-hpc list shows all of them")


def show_names(console: Console) -> None:
    """Print one line a name, by family. A terminal cuts long lines."""
    for family in plugins.FAMILIES:
        names = plugins.members(family)
        show_lines(console, family, {name: first_line(family, name) for name in names})
    keys = [key for key, field in Config.model_fields.items() if section_of(field) is None and not is_family(field)]
    descriptions = {key: str(Config.model_fields[key].description) for key in keys}
    texts = {name: ", ".join(section.model_fields) for name, section in sections().items()}
    show_lines(console, CONFIGURATION, descriptions | texts)
    console.print("[dim]flora-hpc list NAME shows the options of a family, of a member or of a section[/]", soft_wrap=True)


def show_lines(console: Console, title: str, lines: dict[str, str]) -> None:
    """Print a title, and names with their texts."""
    console.print(f"[bold]{title}[/]")
    width = max(map(len, lines), default=0)
    for name, text in lines.items():
        is_cut = console.is_terminal
        line = f"  [green]{name}[/]{' ' * (width - len(name))}  {escape(text)}"
        console.print(line, soft_wrap=not is_cut, no_wrap=is_cut, overflow="ellipsis" if is_cut else None)


def first_line(family: str, name: str) -> str:
    """The first docstring line of a member, and its source, if that is not flora_hpc.

    A file of flora_hpc is read, not imported, since it may import PyTorch.
    """
    try:
        part = plugins.own_part(family, name)
        if part is not None:
            return f"{(part.load().__doc__ or '').strip().partition(chr(10))[0]} [{part.source}]".strip()
    except UserError as error:  # two plugins have that name, or this one cannot be imported
        return str(error)
    with suppress(ImportError, OSError, SyntaxError):
        module = f"{plugins.FAMILIES[family]}.{name}"
        spec = find_spec(module)
        if spec and isinstance(spec.loader, InspectLoader) and (source := spec.loader.get_source(module)):
            return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    return str(plugins.member(family, name).__doc__).strip().partition("\n")[0]


def show_family(console: Console, family: str) -> None:
    """Print all members with their options, but algorithms with their parts.

    Options that most members share are printed once, above them.
    """
    console.print(f"[bold]{family}[/]")
    if family == _algorithms.FAMILY:
        texts = {name: first_line(family, name) for name in plugins.members(family)}
        show_table(console, _algorithms.table(texts, not console.is_terminal or console.width >= WIDE, console.is_terminal))
        console.print(
            "[dim]flora-hpc list NAME shows the formula and the options of an algorithm, and what it sends[/]", soft_wrap=True
        )
        return
    options = {member: own_fields(options_of(family, member)) for member in plugins.members(family)}
    common = common_lines(options)
    if common:
        console.print("  [dim]options of all, but where a name says otherwise:[/]", soft_wrap=True)
        for line, missing in common.items():
            suffix = f"  [dim](not {', '.join(missing)})[/]" if missing else ""
            console.print(f"    {line}{suffix}", soft_wrap=True)
    for member, lines in options.items():
        show_member_line(console, family, member)
        for line in lines:
            if line not in common:
                console.print(f"    {line}", soft_wrap=True)


def common_lines(options: dict[str, list[str]]) -> dict[str, list[str]]:
    """The lines that more than half of the members share: line -> the members without an option of that name."""
    counts = Counter(line for lines in options.values() for line in lines)

    def without(line: str) -> list[str]:
        key = line.partition(" ")[0]
        return [member for member, lines in options.items() if all(each.partition(" ")[0] != key for each in lines)]

    return {line: without(line) for line, count in counts.items() if count > 1 and 2 * count > len(options)}


def show_member(console: Console, family: str, member: str) -> None:
    """Print one member with all its options."""
    console.print(f"[bold]{family}[/]")
    show_member_line(console, family, member)
    if family == _algorithms.FAMILY:
        show_table(console, _algorithms.facts_table(member))
    for line in own_fields(options_of(family, member)):
        console.print(f"    {line}", soft_wrap=True)


def show_table(console: Console, table: Table) -> None:
    """Print a table. A terminal gets folded cells, other outputs get one line a row."""
    wide = console if console.is_terminal else Console(highlight=False, width=MAX_COLUMNS, file=console.file)
    wide.print(table)


def show_member_line(console: Console, family: str, member: str) -> None:
    """Print a member's name and its first line."""
    console.print(f"  [green]{member}[/]  {escape(first_line(family, member))}", soft_wrap=True)


def options_of(family: str, member: str) -> type[BaseModel]:
    """The model of a member's options."""
    options: type[BaseModel] = getattr(plugins.member(family, member), "Options", plugins.BaseOptions)
    return options


def show_sizes(model: str, classes: int) -> None:
    """Print trained numbers and payload of every method with its default options; needs no weights."""
    import torch  # with what follows, seconds of imports

    from flora_hpc.clip import load, weights
    from flora_hpc.config import ModelConfig
    from flora_hpc.data.holdings import Partition
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
    reasons = []
    for name in plugins.members("methods"):
        module = plugins.member("methods", name)
        try:
            method: Method = module.build(module.Options(name=name), setting)
        except UserError as error:
            table.add_row(name, "-", "-", "-")
            reasons.append(str(error).partition(": ")[2])
        else:
            trained = "frozen" if method.sees == "features" else "trained"
            table.add_row(name, f"{method.num_trained:,}", f"{method.payload_bytes:,}", trained)
    console = Console()
    console.print(table)
    for reason in reasons:
        console.print(f"- {reason}", highlight=False, markup=False)


def show_section(console: Console, title: str, section: type[BaseModel], prefix: str) -> None:
    """Print a section of the configuration with all its keys."""
    console.print(f"[bold]{title}[/]")
    show_fields(console, section, prefix)


def show_fields(console: Console, model: type[BaseModel], prefix: str) -> None:
    """Print one line per key. Nested sections follow with dotted keys; families do not."""
    for key, field in model.model_fields.items():
        if section := section_of(field):
            show_fields(console, section, f"{prefix}{key}.")
        elif not is_family(field):
            console.print(f"  {field_line(f'{prefix}{key}', field)}", soft_wrap=True)


def own_fields(options: type[BaseModel]) -> list[str]:
    """One line per option of a member."""
    return [field_line(key, field) for key, field in options.model_fields.items() if key != "name"]


def field_line(key: str, field: FieldInfo) -> str:
    """A key, its default and its description, with rich's marks."""
    default = "required" if field.is_required() else f"{field.default}"
    return f"{key} = {escape(default)}  [dim]{escape(field.description or '')}[/]"


def sections() -> dict[str, type[Section]]:
    """The sections of a configuration by their key."""
    by_key = {key: section_of(field) for key, field in Config.model_fields.items()}
    return {key: section for key, section in by_key.items() if section}


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds, if it holds one."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def is_family(field: FieldInfo) -> bool:
    """Whether a field holds the options of a family's member."""
    kind = field.annotation
    return isinstance(kind, type) and issubclass(kind, plugins.BaseOptions)
