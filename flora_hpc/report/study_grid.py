"""The keys of a study: which ones vary on their own, in which order their values stand, which are lines and which are panels."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flora_hpc.studies.statistics import Setting

MOST_LINES = 12  # values of a key as lines of one panel
MOST_PANELS = 24
Keys = Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """A key and its values in order: numbers ascend, then other values stand as they first appear."""

    key: str
    samples: tuple[Keys, ...]  # for each value, the keys of a setting that has it

    @cached_property
    def values(self) -> tuple[str, ...]:
        """The identity of each value."""
        return tuple(identity(keys, self.key) for keys in self.samples)

    @cached_property
    def numbers(self) -> tuple[float, ...] | None:
        """The values as numbers; None unless all are."""
        values = [keys.get(self.key) for keys in self.samples]
        return tuple(float(value) for value in values) if all(map(is_number, values)) else None  # type: ignore[arg-type]

    def index(self, keys: Keys) -> int:
        """Which of the values a setting has."""
        return self.values.index(identity(keys, self.key))

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class Grid:
    """How the settings of a study are laid out."""

    axes: tuple[Axis, ...]  # keys that vary on their own, in the order of the grid
    along: dict[str, str]  # keys whose value follows from that of another key -> this key
    lines: Axis | None  # its values are lines; None where every key has more than MOST_LINES
    panels: tuple[Axis, ...]  # at most two; their combinations are panels

    @property
    def rest(self) -> tuple[str, ...]:
        """Keys that are neither lines nor panels."""
        drawn = {axis.key for axis in (self.lines, *self.panels) if axis}
        return tuple(axis.key for axis in self.axes if axis.key not in drawn)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that tell settings apart."""
        return tuple(axis.key for axis in self.axes)


def identity(keys: Keys, key: str) -> str:
    """A value as text that is equal for equal values only; a key that is absent differs from one that is null."""
    return json.dumps(keys[key], sort_keys=True) if key in keys else ""


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def layout(settings: Sequence[Setting]) -> Grid:
    """Choose lines and panels: the key with most values, up to MOST_LINES, has lines; two others have panels, up to MOST_PANELS."""
    keys = list(dict.fromkeys(key for setting in settings for key in setting.keys))
    axes = [axis for axis in (_axis(key, settings) for key in keys) if len(axis) > 1]
    alone: list[Axis] = []
    along: dict[str, str] = {}
    for axis in sorted(axes, key=lambda axis: -len(axis)):
        leader = next((other for other in alone if _follows(axis, other, settings)), None)
        if leader:
            along[axis.key] = leader.key
        else:
            alone.append(axis)
    lines = next((axis for axis in alone if len(axis) <= MOST_LINES), None)
    panels: list[Axis] = []
    room = MOST_PANELS
    for axis in alone if lines else []:
        if axis is not lines and len(panels) < 2 and len(axis) <= room:
            panels.append(axis)
            room //= len(axis)
    return Grid(tuple(axis for axis in axes if axis in alone), along, lines, tuple(panels))


def _axis(key: str, settings: Sequence[Setting]) -> Axis:
    samples: dict[str, Keys] = {}
    for setting in settings:
        samples.setdefault(identity(setting.keys, key), setting.keys)
    ordered = sorted(samples.values(), key=lambda keys: _order(keys.get(key)))  # stable
    return Axis(key, tuple(ordered))


def _order(value: Any) -> tuple[bool, float]:
    return (False, float(value)) if is_number(value) else (True, 0.0)


def _follows(axis: Axis, other: Axis, settings: Sequence[Setting]) -> bool:
    """Whether each value of `other` comes with one value of `axis`."""
    pairs = {(identity(setting.keys, other.key), identity(setting.keys, axis.key)) for setting in settings}
    return len(pairs) == len(other)
