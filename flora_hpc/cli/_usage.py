"""Sentences on mistakes in the words of a command line, where those of the library for command lines name no cure."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

from flora_hpc import configfile

NEAR = 0.85  # likeness of a word to a key, from 0 to 1, from which on it is taken for a mistyped one


def sentence(error: Any, words: Sequence[str]) -> str:
    """The sentence with the cure for an error of the command line `words`; empty where the library's own text is enough."""
    command = getattr(getattr(error, "ctx", None), "command", None)
    options = {option for param in getattr(command, "params", ()) for option in param.opts}
    message = str(getattr(error, "message", ""))
    if getattr(error, "param", None) is not None:
        name = max(error.param.opts, key=len)
        if message.startswith("Value error, "):
            return f"{name}: {message.removeprefix('Value error, ').rstrip('.')}"
        if message.startswith("Input should be a valid integer"):
            return f"{name}: must be a whole number, such as {name} 4"
        if type(error).__name__ == "MissingParameter" and name == "config":
            return f"{error.ctx.info_name}: which configuration? for example quickstart, or a YAML file"
    if "--set" not in options:
        return ""
    if match := re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \(((?:[\w.]+=\S*\s*)+)\)", message):
        return f"{match[1]}: set keys with -s, for example {' '.join(f'-s {word}' for word in match[1].split())}"
    if message.startswith("Got unexpected extra argument") and (given := keys_apart(words)):
        return f"{given[0]} {given[1]}: a key and its value are one word: -s {given[0]}={given[1]}"
    option = str(getattr(error, "option_name", ""))
    if message.startswith("No such option") and (key := key_of(option)):
        return f"{option}: there is no such option; set keys with -s, for example -s {key}={value_after(option, words)}"
    return ""


def key_of(option: str) -> str:
    """The key of a configuration that an option such as --rounds, --round or --client.lr means; empty where there is none."""
    name = option.lstrip("-").replace("-", "_")
    keys: dict[str, str] = {}  # the first of several keys with the same last word is meant
    for key in configfile.all_keys({}):
        keys.setdefault(key.rpartition(".")[2], key)
        keys[key] = key
    near = difflib.get_close_matches(name, keys, 1, NEAR) if option.startswith("--") else []
    return keys[near[0]] if near else ""


def keys_apart(words: Sequence[str]) -> tuple[str, str] | None:
    """The first key behind -s whose value is the next word, and that word; None without such a key."""
    for option, key, value in zip(words, words[1:], words[2:], strict=False):
        if option in ("-s", "--set") and "=" not in key:
            return key, value
    return None


def value_after(option: str, words: Sequence[str]) -> str:
    """The value that the command line gives to an option, with a blank or = between; VALUE where it has none."""
    for word, following in zip(words, [*words[1:], "-"], strict=True):
        if word.startswith(f"{option}="):
            return word.partition("=")[2] or "VALUE"
        if word == option and not following.startswith("-"):
            return following
    return "VALUE"
