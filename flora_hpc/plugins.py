"""Families of interchangeable members: a member is a file, and its name is the file's name.

A member's file has `Options` (a pydantic model, where there are options) and `build`. To add a member, put its file into the
family's folder; there is no list to edit. Members that differ only in data need no files: the family's package may have a mapping
`TABLE` from names to modules made in memory. `userparts` describes how users add their own members.
"""

import gc
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import Field

from flora_hpc import userparts
from flora_hpc.errors import UserError, did_you_mean
from flora_hpc.strict import StrictModel
from flora_hpc.userparts import Part

T = TypeVar("T")
FAMILIES = {
    "methods": "flora_hpc.methods",
    "datasets": "flora_hpc.data.datasets",
    "partitioners": "flora_hpc.data.partitioners",
    "algorithms": "flora_hpc.algorithms",
    "attacks": "flora_hpc.attacks",
    "backends": "flora_hpc.comm.backends",
    "observers": "flora_hpc.observers",
}


class BaseOptions(StrictModel):
    """The options that every member has."""

    name: str = Field(description="which member of the family")


_used: dict[tuple[str, str], Part] = {}  # (family, name) -> a member from the user's file


def use(path: str | Path) -> None:
    """Add the user's members in a file or a folder to their families, for this process.

    Raises UserError for a file that is no member, and for a name that the family already has.
    """
    for part in userparts.read(path):
        key = part.family, part.name
        if part.name in _shipped(part.family):
            raise UserError(
                f"--plugin {path}: {part.family[:-1]} '{part.name}' is one of flora_hpc's own; give the file another name"
            )
        if key in _used and _used[key].source != part.source:
            raise UserError(
                f"--plugin {path}: {part.family[:-1]} '{part.name}' is in {_used[key].source}, too; give one of them another name"
            )
        _used[key] = part


@contextmanager
def scope() -> Iterator[None]:
    """Inside, `use` starts with no user's files; at the end, the members are those from before."""
    before = dict(_used)
    _used.clear()
    try:
        yield
    finally:
        _used.clear()
        _used.update(before)


def build(family: str, options: "BaseOptions", kind: type[T], *arguments: Any) -> T:
    """Build the member that `options` name: the result of its `build`. Raises UserError when that is not of its family's `kind`."""
    result = member(family, options.name).build(options, *arguments)
    if not isinstance(result, kind):
        what = f"{family[:-1]} '{options.name}': its build must return a {kind.__name__}, not a {type(result).__name__}"
        raise UserError(f"{what}; see docs/own-parts.md")
    return result


def own_part(family: str, name: str) -> Part | None:
    """The user's member with this name, from a file or an installed package; None for a member of flora_hpc.

    Raises UserError where two members have the name: neither may silently replace the other.
    """
    packages = [part for part in userparts.installed() if (part.family, part.name) == (family, name)]
    parts = [*packages, *([_used[family, name]] if (family, name) in _used else [])]
    sources = [*(["flora_hpc"] if name in _shipped(family) else []), *(part.source for part in parts)]
    if len(sources) > 1:
        raise UserError(f"{family[:-1]} '{name}' is a name in {' and in '.join(sources)}; rename or uninstall one of them")
    return parts[0] if parts else None


def _shipped(family: str) -> frozenset[str]:
    package = importlib.import_module(FAMILIES[family])
    return _files(tuple(package.__path__)) | set(_table(package))


@cache
def _files(folders: tuple[str, ...]) -> frozenset[str]:
    """The members of a family that are files; each folder is read once."""
    return frozenset(module.name for module in pkgutil.iter_modules(folders) if not module.name.startswith("_"))


def members(family: str) -> list[str]:
    """Names of all members of a family, sorted. Only the family's package is imported."""
    user_names = {part.name for part in (*userparts.installed(), *_used.values()) if part.family == family}
    return sorted(_shipped(family) | user_names)


def member(family: str, name: str) -> ModuleType:
    """The module of one member. Raises UserError with the valid names when there is none."""
    names = members(family)
    if name not in names:
        own = "; a part of your own needs --plugin FILE.py" if family in userparts.OPEN else ""
        if family == "algorithms" and name in members("methods"):
            raise UserError(f"no algorithm '{name}'; {name} is a method: set method.name: {name}, with fedavg or another algorithm")
        raise UserError(f"no {family[:-1]} '{name}'{did_you_mean(name, names)} ({', '.join(names)}){own}")
    if part := own_part(family, name):
        return part.load()
    table = _table(importlib.import_module(FAMILIES[family]))
    if name in table:
        return table[name]
    with without_garbage_collection():
        return importlib.import_module(f"{FAMILIES[family]}.{name}")


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Turn off Python's garbage collection inside.

    A member may import PyTorch, which creates very many objects. None of them is garbage, and searching them takes time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _table(package: ModuleType) -> Mapping[str, ModuleType]:
    table: Mapping[str, ModuleType] = getattr(package, "TABLE", {})
    return table
