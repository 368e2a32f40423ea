"""Share model, data and features between the runs of one process: they are built once."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Shared:
    """Keeps the last model, the last dataset and its features for the runs of one process, as long as this object lives.

    Runs never change shared objects. Files are read once, so later changes on the disk have no effect. Each rank passes its own
    `Shared` object, and all ranks play the same runs in the same order.
    """

    def __init__(self) -> None:
        self._entries: dict[str, tuple[Hashable, Any]] = {}

    def recall(self, name: str, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value under `name` if it was kept for `key`. Otherwise `make` a new value and keep it instead."""
        entry = self._entries.get(name)
        if entry is None or entry[0] != key:
            self._entries.pop(name, None)  # its memory is free before the next value is made
            entry = self._entries[name] = key, make()
        value: T = entry[1]
        return value

    def keep(self, name: str, key: Hashable, value: object) -> None:
        """Keep `value` under `name` for `key`, in place of the former value."""
        self._entries[name] = key, value


class NothingShared(Shared):
    """Keeps nothing: for the only run of a process."""

    def recall(self, name: str, key: Hashable, make: Callable[[], T]) -> T:
        """Return a new value."""
        return make()

    def keep(self, name: str, key: Hashable, value: object) -> None:
        """Keep nothing."""
