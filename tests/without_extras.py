"""`flora-hpc WORDS...` as where no extra is installed: Python finds none of the extras' packages, and none is loaded at the end."""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

from flora_hpc.cli import main
from flora_hpc.extras import EXTRAS


class Others:
    """A finder of modules that finds all others."""

    def __init__(self, finder: MetaPathFinder) -> None:
        self.finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return None if name.partition(".")[0] in EXTRAS else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


loaded = [name for name in EXTRAS if name in sys.modules]
assert not loaded, loaded
sys.meta_path[:] = [Others(finder) for finder in sys.meta_path]  # type: ignore[arg-type, list-item]
main()
