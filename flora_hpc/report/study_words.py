"""Texts of keys, values and settings of a study, with the names that a user gives them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flora_hpc.errors import UserError, did_you_mean
from flora_hpc.records.study import Point

ABSENT = "-"  # the text of a key that a point does not set


@dataclass(frozen=True)
class Names:
    """The texts of `--label`: for keys, and for texts of values."""

    keys: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)

    def key(self, key: str) -> str:
        """The name of a key."""
        return self.keys.get(key, key)

    def value(self, keys: Mapping[str, Any], key: str) -> str:
        """The text of the value that `keys` has for a key."""
        if key not in keys:
            return ABSENT
        text = text_of(keys[key])
        return self.values.get(text, text)

    def pair(self, keys: Mapping[str, Any], key: str) -> str:
        """'rank=4', or 'fedprox' alone where the key only names what was chosen."""
        value = self.value(keys, key)
        is_choice = isinstance(keys.get(key), str) and key.rpartition(".")[2] in ("name", "algorithm")
        return value if is_choice else f"{self.key(key)}={value}"

    def setting(self, keys: Mapping[str, Any], which: Sequence[str]) -> str:
        """The values of the keys in `which`; 'all points' where there is none."""
        return ", ".join(self.pair(keys, key) for key in which) or "all points"


def text_of(value: Any) -> str:
    """A value as users write it: 0.0005, flora, [1, 2]; large whole numbers have commas."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return json.dumps(value, ensure_ascii=False)


def names(points: Sequence[Point], labels: Sequence[str]) -> Names:
    """The names in `--label` KEY=TEXT or VALUE=TEXT. Raises UserError for what is neither a key nor a value of the grid."""
    keys = list(dict.fromkeys(key for point in points for key in point.setting))
    values = {text: text_of(value) for point in points for value in point.setting.values() for text in (str(value), text_of(value))}
    chosen = Names()
    for label in labels:
        old, equals, new = label.partition("=")
        if not (equals and old and new):
            raise UserError(f"--label {label}: is not KEY=TEXT; give for example --label method.rank=rank")
        if old in keys:
            chosen.keys[old] = new
        elif old in values:
            chosen.values[values[old]] = new
        else:
            hint = did_you_mean(old, [*keys, *values])
            raise UserError(
                f"--label {label}: {old!r} is no key and no value of this study{hint} (keys: {', '.join(keys) or 'none'})"
            )
    return chosen
