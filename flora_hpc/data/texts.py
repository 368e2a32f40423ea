"""Check texts that come with data: characters that files and tokenizers refuse, and caption templates."""

import json
import unicodedata
from typing import Any

PLACE = "{}"
LONGEST = 80  # most characters of a value in a message


def fault(text: str) -> str | None:
    """What makes a text unusable, in a few words; None for a usable text."""
    if "\0" in text:
        return "a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"{text[error.start]!a}, half of a pair of UTF-16, which UTF-8 cannot hold"
    return None


def name_fault(name: str) -> str | None:
    """What makes the name of a class or dataset unusable, in a few words; None for a usable one. Names must fit on one line."""
    control = next((sign for sign in name if unicodedata.category(sign) == "Cc"), None)
    return fault(name) or (None if control is None else f"the control character {control!a}")


def template_fault(caption: str) -> str | None:
    """Why a caption is no template, in one clause; None if it has {} once and no other braces."""
    if caption.count(PLACE) != 1 or set("{}") & set(caption.replace(PLACE, "")):
        return f"needs {{}} once, where the name of the class goes, and no other braces, not {shown(caption)}"
    sign = fault(caption)
    return None if sign is None else f"holds {sign}"


def shown(value: object) -> str:
    """A value for a message, cut to `LONGEST` characters."""
    text = ascii(value) if isinstance(value, str) and fault(value) else repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def from_json(text: str) -> Any:
    """Parse a JSON text. Raises ValueError for other texts, and for an object with a key twice."""
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
