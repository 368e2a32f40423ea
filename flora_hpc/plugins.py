"""Families of interchangeable parts: a member is a file, its name is the file's name.

A file offers `Options` (a pydantic model, where it has options) and `build`. There is no list to edit: dropping a file into
the family's folder is enough. Members that differ in facts alone need no files: the family's package may have a mapping `TABLE`
from names to modules made in memory.
"""

import gc
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType

from pydantic import Field

from flora_hpc.errors import UserError, did_you_mean
from flora_hpc.strict import StrictModel

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


def members(family: str) -> list[str]:
    """Names of all members of a family, sorted; nothing is imported but the family's package."""
    package = importlib.import_module(FAMILIES[family])
    files = {m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")}
    return sorted(files | set(_table(package)))


def member(family: str, name: str) -> ModuleType:
    """The module of one member. Raises UserError with the valid names when there is none."""
    names = members(family)
    if name not in names:
        raise UserError(f"no {family[:-1]} '{name}'{did_you_mean(name, names)} ({', '.join(names)})")
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
