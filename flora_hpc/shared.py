"""What the runs of one process have in common: model, data and features are built once and handed to each run."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Shared:
    """Keeps the last model, the last dataset and its features for the runs of one process, as long as this object lives.

    Runs never change what is kept. Files are read once: what changes on the disk later is not seen. All ranks hand over an object
    of their own and play the same runs in the same order.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Hashable, Any]] = {}

    def recall(self, name: str, key: Hashable, make: Callable[[], T]) -> T:
        """What is kept under `name` for `key`. Where that is something else or nothing, `make` it, and keep it instead."""
        kept = self._kept.get(name)
        if kept is None or kept[0] != key:
            self._kept.pop(name, None)  # its memory is free before the next one is made
            kept = self._kept[name] = key, make()
        value: T = kept[1]
        return value

    def keep(self, name: str, key: Hashable, value: object) -> None:
        """Keep `value` under `name` for `key`, in place of what was kept."""
        self._kept[name] = key, value


class NothingShared(Shared):
    """Keeps nothing: for a run that is alone in its process."""

    def recall(self, name: str, key: Hashable, make: Callable[[], T]) -> T:
        """Made anew."""
        return make()

    def keep(self, name: str, key: Hashable, value: object) -> None:
        """Let it go."""
