"""Texts that come with data: what no file or tokenizer can take, and captions with a place for the name of a class."""

import json
import unicodedata
from typing import Any

PLACE = "{}"
LONGEST = 80  # characters of a value that a message shows


def fault(text: str) -> str | None:
    """What makes a text unusable, in a few words; None for a good one."""
    if "\0" in text:
        return "a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"{text[error.start]!a}, half of a pair of UTF-16, which UTF-8 cannot hold"
    return None


def name_fault(name: str) -> str | None:
    """What makes the name of a class or dataset unusable, in a few words; None for a good one. It is printed on one line."""
    control = next((sign for sign in name if unicodedata.category(sign) == "Cc"), None)
    return fault(name) or (None if control is None else f"the control character {control!a}")


def template_fault(caption: str) -> str | None:
    """Why a caption is no template, in one clause; None when it has {} once and no other braces."""
    if caption.count(PLACE) != 1 or set("{}") & set(caption.replace(PLACE, "")):
        return f"needs {{}} once, where the name of the class goes, and no other braces, not {shown(caption)}"
    sign = fault(caption)
    return None if sign is None else f"holds {sign}"


def shown(value: object) -> str:
    """A value for a message, cut where it is long."""
    text = ascii(value) if isinstance(value, str) and fault(value) else repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def from_json(text: str) -> Any:
    """What a JSON text says. Raises ValueError where it is none, or has a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {next(shown(key) for key in keys if keys.count(key) > 1)} twice")
    return result
