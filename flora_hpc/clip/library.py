"""Import open_clip without the modules that few models need: on every rank, these imports take more time than all others.

Seconds of processor time (medians; PyTorch 2.14.1, open_clip 3.3.0, timm 1.0.31, transformers 5.24.0):

                                        as here    without stand-ins    stand-ins for OPTIONAL only
    PyTorch and this package                4.3                  9.7                            8.0
    the same, and a random ViT-B-32         5.3                 12.4

timm and transformers build towers that are not open_clip's own. torchvision loads PyTorch's compiler for one operator's check
`is_compile_supported`; timm loads the compiler, too. torchvision also loads all its models and data sets; open_clip uses neither.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

OPTIONAL = {"timm": "open_clip.timm_model", "transformers": "open_clip.hf_model"}  # package -> its user, which works without it
COMPILER = "torch._dynamo.utils"
LAZY = (COMPILER, "torchvision.models", "torchvision.datasets")


class LazyModule(ModuleType):
    """A stand-in for a module, which is imported when one of its names is first read.

    `is_compile_supported`, a function of the compiler, imports the compiler only when it is called.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)

    def is_compile_supported(self, device: str) -> bool:
        """Whether the compiler supports `device`."""
        return bool(self.__getattr__("is_compile_supported")(device))


@contextmanager
def deferred_imports() -> Iterator[None]:
    """Inside, imports find no `OPTIONAL` package and a `LazyModule` for each of `LAZY`. Modules that are loaded already stay."""
    stand_ins: dict[str, Any] = dict.fromkeys(OPTIONAL) | {name: LazyModule(name) for name in LAZY}
    stand_ins = {name: stand_in for name, stand_in in stand_ins.items() if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


def import_deferred() -> bool:
    """Import the `OPTIONAL` packages for open_clip. Returns False when none of them could be imported newly."""
    incomplete = [sys.modules[user] for name, user in OPTIONAL.items() if getattr(sys.modules[user], name) is None]
    for user in incomplete:
        importlib.reload(user)  # its existing classes look names up in the module, and find them now
    return any(getattr(sys.modules[user], name) is not None for name, user in OPTIONAL.items() if sys.modules[user] in incomplete)


with deferred_imports():
    import open_clip as open_clip
