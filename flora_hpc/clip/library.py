"""open_clip without what only some of its models need, which takes more time than all the rest, on every rank.

Seconds of processor time (medians; PyTorch 2.14.1, open_clip 3.3.0, timm 1.0.31, transformers 5.24.0):

                                        as here    without stand-ins    with those of OTHERS alone
    PyTorch and this package                4.3                  9.7                           8.0
    the same, and a random ViT-B-32         5.3                 12.4

timm and transformers build towers that are not open_clip's own. torchvision loads PyTorch's compiler for a question that only one
of its operators asks, and timm loads it, too. torchvision also loads all its models and data sets, and open_clip uses neither.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

OTHERS = {"timm": "open_clip.timm_model", "transformers": "open_clip.hf_model"}  # and who in open_clip does without when it must
COMPILER = "torch._dynamo.utils"
LATER = (COMPILER, "torchvision.models", "torchvision.datasets")


class Later(ModuleType):
    """Stands for a module until one of its names is asked for, and then gives the module's own.

    `is_compile_supported`, a function of the compiler, waits until it is called.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)

    def is_compile_supported(self, device: str) -> bool:
        """Whether the compiler takes models on `device`."""
        return bool(self.__getattr__("is_compile_supported")(device))


@contextmanager
def put_off() -> Iterator[None]:
    """Imports inside find no `OTHERS`, and a `Later` for each of `LATER`; those that are loaded already stay."""
    stand_ins: dict[str, Any] = dict.fromkeys(OTHERS) | {name: Later(name) for name in LATER}
    stand_ins = {name: stand_in for name, stand_in in stand_ins.items() if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


def complete() -> bool:
    """Give open_clip what was put off. Returns False when that brought nothing new."""
    missing = [sys.modules[user] for name, user in OTHERS.items() if getattr(sys.modules[user], name) is None]
    for user in missing:
        importlib.reload(user)  # its classes, which others hold, look names up in the module and find them now
    return any(getattr(sys.modules[user], name) is not None for name, user in OTHERS.items() if sys.modules[user] in missing)


with put_off():
    import open_clip as open_clip
