"""Members of families that a user adds: Python files that the user names, and entry points of installed packages.

A file names its family, `FAMILY = "algorithms"`, and has `Options` and `build` like every member. The file's name without `.py` is
the member's name. A package has an entry point in the group `flora_hpc.algorithms` for such a module. The code of a file runs only
when a user names the file; a configuration or a run directory never runs it.
"""

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from flora_hpc.errors import UserError, at_home, did_you_mean, reason
from flora_hpc.strict import StrictModel

OPEN = ("algorithms", "datasets", "methods", "partitioners")  # families that a user can add to


@dataclass(frozen=True)
class Part:
    """A member of a family that comes from a user, not from flora_hpc."""

    family: str
    name: str
    source: str  # the path of its file, or its package with the version
    module: ModuleType | EntryPoint
    file_digest: str = ""  # of the user's file; empty for a package

    @property
    def is_file(self) -> bool:
        """Whether the part comes from a file that the user named."""
        return isinstance(self.module, ModuleType)

    @property
    def digest(self) -> str:
        """A digest of the part's file. Raises UserError when the part cannot be imported."""
        return self.file_digest or digest_of(inspect.getsource(self.load()).encode())

    def load(self) -> ModuleType:
        """The part's module. Raises UserError when the module cannot be imported, or lacks `Options` or `build`."""
        if isinstance(self.module, ModuleType):
            return self.module
        try:
            module: ModuleType = self.module.load()
        except Exception as error:  # a module of another package may raise any error
            raise UserError(f"{self.family[:-1]} {self.name} of {self.source}: {_why(error)}") from error
        return _checked(module, self.family, f"{self.family[:-1]} {self.name} of {self.source}")


def read(path: str | Path) -> list[Part]:
    """The parts in a file, or in all files of a folder whose names do not begin with `_`.

    Raises UserError for a file that does not exist, cannot be imported or is no part.
    """
    place = at_home(path, key="--plugin").resolve()
    if place.is_dir():
        files = sorted(file for file in place.glob("*.py") if not file.name.startswith("_"))
        if not files:
            raise UserError(f"--plugin {path}: no Python file lies in this folder; give the folder or the file of a part")
        return [_read_file(file, f"--plugin {file}") for file in files]
    return [_read_file(place, f"--plugin {path}")]


def _read_file(file: Path, where: str) -> Part:
    try:
        source = file.read_bytes()
    except FileNotFoundError:
        nearby = sorted(other.name for other in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise UserError(f"{where}: there is no such file{did_you_mean(file.name, nearby)}") from None
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({reason(error)}); make it readable") from None
    name, digest = file.stem, digest_of(source)
    if file.suffix != ".py" or not name.isidentifier():
        raise UserError(f"{where}: name the file like a Python module, such as my_rule.py; its name without .py is the part's")
    module = _run(file, source, f"flora_hpc_plugin_{name}_{digest[:8]}", where)
    family = getattr(module, "FAMILY", None)
    if family not in OPEN:
        mistake = "does not say of which family it is" if family is None else f"says FAMILY = {family!r}"
        raise UserError(f'{where}: {mistake}; write FAMILY = "algorithms", or one of {", ".join(OPEN)}, at its top')
    return Part(family, name, str(file), _checked(module, family, where), digest)


def digest_of(source: bytes) -> str:
    """A digest that distinguishes two versions of a file."""
    return hashlib.blake2b(source, digest_size=16).hexdigest()


def _run(file: Path, source: bytes, name: str, where: str) -> ModuleType:
    """The module of a file; every call returns the same object."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic looks for the types of annotations there
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)  # exactly the bytes of the digest
    except BaseException as error:  # a user's file may raise any error
        del sys.modules[name]
        if isinstance(error, Exception):
            raise UserError(f"{where}: {_why(error, str(file))}") from error
        raise
    return module


def _checked(module: ModuleType, family: str, where: str) -> ModuleType:
    """The same module. Raises UserError unless it is a module with `build` and `Options`, like every member of `family`."""
    if not isinstance(module, ModuleType):
        raise UserError(f"{where}: is no module; let the entry point name the module alone, without a colon")
    if not callable(getattr(module, "build", None)):
        raise UserError(f"{where}: has no function build; see docs/own-parts.md for what a member of its family offers")
    base = {"partitioners": "PartitionOptions", "datasets": "DatasetOptions"}.get(family, "BaseOptions")
    options = getattr(module, "Options", None)
    bases = [kind.__name__ for kind in options.__mro__] if isinstance(options, type) and issubclass(options, StrictModel) else []
    if base not in bases:
        raise UserError(f"{where}: has no class Options({base}), with {base} from flora_hpc.parts; a class without fields will do")
    return module


def _why(error: Exception, file: str = "") -> str:
    """The error and the line of `file` that stopped an import; without a file, the line of the code that raised the error."""
    line, trace = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None, error.__traceback__
    while trace is not None and not isinstance(error, SyntaxError):
        line = trace.tb_lineno if file in ("", trace.tb_frame.f_code.co_filename) else line
        trace = trace.tb_next
    return f"cannot be imported: {type(error).__name__} in line {line}: {reason(error)}"


@cache
def installed() -> tuple[Part, ...]:
    """The parts of installed packages. None of the packages is imported."""
    return tuple(_entries())


def _entries() -> Iterator[Part]:
    for family in OPEN:
        for entry in entry_points(group=f"flora_hpc.{family}"):
            package = f"package {entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"
            yield Part(family, entry.name, package, entry)
