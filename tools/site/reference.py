"""The reference pages of the site, made from the code: configuration, commands, algorithms, columns of run.h5."""

import inspect
import re
from collections.abc import Iterator, Sequence
from enum import EnumType
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from flora_hpc import plugins
from flora_hpc.cli import app
from flora_hpc.cli._algorithms import facts, parts_text
from flora_hpc.cli.list_ import first_line, is_family, options_of, section_of
from flora_hpc.config import PARTS, Config
from flora_hpc.records.schema import ATTRIBUTES, COLUMNS, SCHEMA, SINCE, Field

CHAPTERS = {"method": "methods", "data": "datasets", "partition": "partitioners", "attack": "attacks"}
HEADS = ("key", "type", "default", "unit", "meaning")
UNITS = {"_seconds": "s", "_bytes": "byte"}
WHOLE_UNITS = {  # keys whose unit is not in their name
    "client.epochs": "epochs",
    "client.batch_size": "examples",
    "rounds": "rounds",
    "evaluate.every": "rounds",
    "checkpoint.every": "rounds",
    "evaluate.fine_tune_epochs": "epochs",
    "cohort.size": "clients",
    "partition.num_clients": "clients",
    "partition.examples_per_client": "examples",
    "partition.min_examples": "examples",
}


def cell(text: str) -> str:
    """A text as the cell of a Markdown table; angle brackets and stars stay what they are."""
    safe = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|*_\[\]{}`])", r"\\\1", safe)


def code(text: str) -> str:
    """A text in code style, also inside a table."""
    return f"`{text}`".replace("|", "&#124;") if "|" not in text else f"<code>{text.replace('|', '&#124;')}</code>"


def kind(annotation: Any) -> str:
    """A type as users read it: `int`, `"fp32", "bf16"`, `float or null`."""
    if get_origin(annotation) is Literal:
        return ", ".join(str(choice) for choice in get_args(annotation))
    if annotation is type(None):
        return "null"
    if get_origin(annotation) in (list, tuple):
        return f"list of {kind(get_args(annotation)[0])}"
    if arguments := [part for part in get_args(annotation) if part is not Ellipsis]:
        names = [kind(part) for part in arguments if not isinstance(part, FieldInfo)]
        is_union = type(None) in arguments or "Union" in str(get_origin(annotation))
        return " or ".join(names) if is_union else names[0]
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "Path": "path"}
    return names.get(getattr(annotation, "__name__", ""), getattr(annotation, "__name__", "any"))


def bounds(field: FieldInfo) -> str:
    """The bounds of a number, such as `> 0, <= 1`; empty where there are none."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    texts = [f"{sign} {getattr(item, name):.4g}" for item in field.metadata for name, sign in signs.items() if hasattr(item, name)]
    return ", ".join(texts)


def default(field: FieldInfo) -> str:
    """The default of a key as YAML writes it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return code(str(list(value) if isinstance(value, tuple) else value))


def table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table of Markdown, without columns in which every cell is empty."""
    whole = [column for column in zip(heads, *rows, strict=True) if any(column[1:])]
    lines = list(zip(*whole, strict=True))
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], ("---",) * len(whole), *lines[1:]))


def row(key: str, field: FieldInfo) -> tuple[str, ...]:
    """The cells of one row of a table of keys."""
    limit = bounds(field)
    unit = WHOLE_UNITS.get(key) or next((unit for end, unit in UNITS.items() if key.endswith(end)), "")
    text = kind(field.annotation) + (f", {limit}" if limit else "")
    return code(key), cell(text), default(field), unit, cell(field.description or "")


def keys(model: type[BaseModel], prefix: str, without: frozenset[str] = frozenset()) -> str:
    """A table of the keys of one model; empty without keys. A member's own name is no key of its table."""
    skipped = without | ({"name"} if issubclass(model, plugins.BaseOptions) else set())
    rows = [row(f"{prefix}{name}", field) for name, field in model.model_fields.items() if name not in skipped]
    return table(HEADS, rows) + "\n" if rows else ""


def common(family: str) -> frozenset[str]:
    """The options that every member of a family has, alike."""
    fields = [options_of(family, member).model_fields for member in plugins.members(family)]
    names = set.intersection(*(set(each) for each in fields)) - {"name"}
    return frozenset(name for name in names if len({row(name, each[name]) for each in fields}) == 1)


def configuration() -> str:
    """The page of all keys of a configuration."""
    top = [(name, field) for name, field in Config.model_fields.items() if section_of(field) is None and not is_family(field)]
    text = "# Configuration: every key\n\nA configuration is a YAML file; `-s key=value` sets a key from the command line. "
    text += "Unknown keys are refused with the nearest one. This page is made from the models that check configurations.\n\n"
    text += f"## Top level\n\n{table(HEADS, [row(name, field) for name, field in top if name not in (*PARTS, 'attack')])}\n"
    for name, field in Config.model_fields.items():
        if section := section_of(field):
            text += f"## {name}\n\n{inspect.getdoc(section)}\n\n{keys(section, f'{name}.')}"
    for section_name, family in CHAPTERS.items():
        text += family_chapter(section_name, family)
    parts = "".join(f"| {code(part)} | {cell(str(Config.model_fields[part].description))} |\n" for part in PARTS)
    text += "## algorithm and its parts\n\n`algorithm: fedavg` names an algorithm; [all of them and their options](algorithms.md). "
    text += "Each part may come from another algorithm ([how they go together](../algorithms.md#parts)).\n\n"
    return f"{text}| key | meaning |\n| --- | --- |\n{parts}"


def family_chapter(section: str, family: str) -> str:
    """The chapter of a section that names a member of a family, with the options of each member."""
    shared = common(family)
    example = plugins.members(family)[0]
    text = f"## {section}\n\n`{section}: {{name: {example}}}` names one of the {family}. "
    if shared:
        model = options_of(family, example)
        rows = [row(f"{section}.{name}", model.model_fields[name]) for name in model.model_fields if name in shared]
        text += f"Keys of all:\n\n{table(HEADS, rows)}\n"
    else:
        text += "\n\n"
    for member in plugins.members(family):
        own = keys(options_of(family, member), f"{section}.", shared)
        text += f"### {section}: {member}\n\n{cell(first_line(family, member))}\n\n{own}"
    return text


def algorithms() -> str:
    """The page of all algorithms: what each does, its formula, its traffic, its options."""
    text = "# Every algorithm\n\nMade from the files in `flora_hpc/algorithms/`; `flora-hpc list NAME` prints the same. "
    text += "[Which to choose, and how parts go together](../algorithms.md).\n\n"
    for name in plugins.members("algorithms"):
        text += f"## {name}\n\n{cell(first_line('algorithms', name))}\n\n| | |\n| --- | --- |\n| parts | {parts_text(name)} |\n"
        text += "".join(
            f"| {label} | {paper(value) if label == 'paper' else cell(value)} |\n" for label, value in facts(name).items()
        )
        text += "\n" + keys(options_of("algorithms", name), "algorithm.")
    return text


def paper(text: str) -> str:
    """A paper's name, with a link where it is on arXiv."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def columns() -> str:
    """The page of tables and attributes of run.h5."""
    text = f"# Columns of run.h5\n\nSchema {SCHEMA}, made from `flora_hpc/records/schema.py`. `since` is the first schema with "
    text += (
        "the column; empty: from the beginning. [How to read the file](../run-file.md). A unit of 1 is a number without unit.\n\n"
    )
    for table, fields in COLUMNS.items():
        text += f"## /{table}\n\n{fields_table(table, fields)}\n"
    return text + f"## Attributes of the file\n\n{fields_table('', ATTRIBUTES)}"


def fields_table(name: str, fields: tuple[Field, ...]) -> str:
    """One table of columns or attributes."""
    rows = [
        (code(field.name), field.type, field.unit, cell(field.meaning), str(SINCE.get((name, field.name), ""))) for field in fields
    ]
    return table(("name", "type", "unit", "meaning", "since"), rows)


def commands() -> str:
    """The page of all commands with their arguments and options."""
    text = "# Every command\n\nMade from the program; `flora-hpc COMMAND --help` prints the same. Exit codes: 0 done, 1 a part of "
    text += "the work or a check failed, 2 you must change something, 75 stopped by a signal and can be resumed "
    text += "([more](../running.md#stop-and-resume)).\n\n"
    text += "".join(command_chapter(name, command) for name, command in walk(typer.main.get_command(app), "flora-hpc"))
    return text


def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command without commands of its own, with its whole name, in the order of `--help`."""
    children = getattr(command, "commands", None)
    if children is None:
        yield name, command
        return
    for child_name, child in children.items():
        yield from walk(child, f"{name} {child_name}")


def command_chapter(name: str, command: Any) -> str:
    """A command's help and its parameters."""
    lines = inspect.cleandoc(command.help or "").split("\n\n")
    text = f"## {name}\n\n" + "\n\n".join(cell(line) for line in lines) + "\n\n| | default | meaning |\n| --- | --- | --- |\n"
    for parameter in command.params:
        is_option = parameter.param_type_name == "option"
        words = (*parameter.opts, *parameter.secondary_opts) if is_option else (parameter.metavar or parameter.name.upper(),)
        label = ", ".join(words)
        if is_option and not parameter.is_flag:
            label += f" {parameter.metavar or kind_of_parameter(parameter)}"
        value = parameter.default if getattr(parameter, "show_default", True) else None
        shown = "" if value in (None, False, []) or callable(value) else code(str(getattr(value, "value", value)))
        text += f"| {code(label)} | {shown} | {cell(parameter.help or '')} |\n"
    return text + "\n"


def kind_of_parameter(parameter: Any) -> str:
    """What an option takes: its choices, or a kind in capitals. Typer keeps the annotation, click a type of its own."""
    descriptor = getattr(parameter, "type_descriptor", None)
    annotation = descriptor.annotation if descriptor else parameter.type
    choices = list(annotation) if isinstance(annotation, EnumType) else getattr(annotation, "choices", None)
    if choices:
        return "|".join(str(getattr(choice, "value", choice)) for choice in choices)
    return str(getattr(annotation, "__name__", getattr(annotation, "name", "value"))).upper()


PAGES = {"configuration": configuration, "commands": commands, "algorithms": algorithms, "columns": columns}
