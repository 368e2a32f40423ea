"""Names of run directories: short, safe and unique."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MOST_NAME = 120  # characters; file systems take 255 bytes
PLAIN = re.compile(r"(?!(?:true|false|null)\Z)[A-Za-z_][\w.+-]*", re.ASCII)  # texts that stand for themselves in a name


def name_of(point: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The name of a point's run directory, such as method=flora,lr=0.001,seed=3. `keys` are those of all points.

    Where other points might have the same name, a digest of the keys and values is added: for paths, which stand with their last
    part, lists, mappings, texts that look like other values, and long names.
    """
    words = [f"{short(key, keys)}={_text(value)}" for key, value in point.items()]
    name = re.sub(r"[^\w.,=+-]", "-", ",".join(words) or "base", flags=re.ASCII)
    if all(_is_plain(value) for value in point.values()) and len(name) <= MOST_NAME:
        return name
    digest = hashlib.blake2b(json.dumps(point, sort_keys=True).encode(), digest_size=6).hexdigest()
    return f"{name[:MOST_NAME]},{digest}"


def short(key: str, keys: Sequence[str]) -> str:
    """The last word of a key, or the section of a name: `client.lr` is lr, `method.name` is method. In full where two are equal."""

    def word(key: str) -> str:
        section, _, last = key.rpartition(".")
        return section if last == "name" and section else last

    return key if [word(other) for other in keys].count(word(key)) > 1 else word(key)


def full(name: str, keys: Sequence[str]) -> str:
    """The one of `keys` that a user names, in full or by its short name: lr is client.lr. Other names come back as they are."""
    return next((key for key in keys if name in (key, short(key, keys))), name)


def _is_plain(value: Any) -> bool:
    """Whether no other value has the same text in a name."""
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and bool(PLAIN.fullmatch(value)))


def _text(value: Any) -> str:
    """A value as a part of a name."""
    if isinstance(value, str):
        return Path(value).name if value.startswith("/") else value
    return json.dumps(value, separators=(",", ":")).replace('"', "")
