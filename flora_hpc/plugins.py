"""Families of interchangeable parts: a member is a file, its name is the file's name.

A file offers `Options` (a pydantic model, where it has options) and `build`. There is no list to edit: dropping a file into
the family's folder is enough. Members that differ in facts alone need no files: the family's package may have a mapping `TABLE`
from names to modules made in memory. `userparts` tells how users add members of their own.
"""

import gc
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from pydantic import Field

from flora_hpc import userparts
from flora_hpc.errors import UserError, did_you_mean
from flora_hpc.strict import StrictModel
from flora_hpc.userparts import Part

FAMILIES = {
    "methods": "flora_hpc.methods",
    "datasets": "flora_hpc.data.datasets",
    "partitioners": "flora_hpc.data.partitioners",
    "aggregators": "flora_hpc.aggregators",
    "backends": "flora_hpc.comm.backends",
    "observers": "flora_hpc.observers",
}


class BaseOptions(StrictModel):
    """What the options of every member share."""

    name: str = Field(description="which member of the family")


_used: dict[tuple[str, str], Part] = {}  # parts of files that a user named, by family and name


def use(path: str | Path) -> None:
    """Add the user's own parts in a file or a folder to their families, for this process.

    Raises UserError for what is no part, and for a name that the family has already.
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


def own_part(family: str, name: str) -> Part | None:
    """The user's part of that name, from a file or an installed package; None for a member that is flora_hpc's.

    Raises UserError where two have the name: none of them may take the other's place in silence.
    """
    packages = [part for part in userparts.installed() if (part.family, part.name) == (family, name)]
    parts = [*packages, *([_used[family, name]] if (family, name) in _used else [])]
    sources = [*(["flora_hpc"] if name in _shipped(family) else []), *(part.source for part in parts)]
    if len(sources) > 1:
        raise UserError(f"{family[:-1]} '{name}' is a name in {' and in '.join(sources)}; rename or uninstall one of them")
    return parts[0] if parts else None


def _shipped(family: str) -> set[str]:
    package = importlib.import_module(FAMILIES[family])
    files = {m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")}
    return files | set(_table(package))


def members(family: str) -> list[str]:
    """Names of all members of a family, sorted; nothing is imported but the family's package."""
    own = {part.name for part in (*userparts.installed(), *_used.values()) if part.family == family}
    return sorted(_shipped(family) | own)


def member(family: str, name: str) -> ModuleType:
    """The module of one member. Raises UserError with the valid names when there is none."""
    names = members(family)
    if name not in names:
        raise UserError(f"no {family[:-1]} '{name}'{did_you_mean(name, names)} ({', '.join(names)})")
    if part := own_part(family, name):
        return part.load()
    table = _table(importlib.import_module(FAMILIES[family]))
    if name in table:
        return table[name]
    with without_garbage_collection():
        return importlib.import_module(f"{FAMILIES[family]}.{name}")


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Python does not look for garbage inside.

    A member may import PyTorch, which makes very many objects. None of them is garbage, and looking at them takes time.
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
