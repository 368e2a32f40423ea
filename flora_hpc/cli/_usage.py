"""Sentences on mistakes in the words of a command line, where those of the library for command lines name no cure."""

import re
from collections.abc import Sequence
from typing import Any

from flora_hpc import configfile


def sentence(error: Any, words: Sequence[str]) -> str:
    """The sentence with the cure for an error of the command line `words`; empty where the library's own text is enough."""
    command = getattr(getattr(error, "ctx", None), "command", None)
    options = {option for param in getattr(command, "params", ()) for option in param.opts}
    message = str(getattr(error, "message", ""))
    if message.startswith("Value error, ") and getattr(error, "param", None) is not None:
        return f"{max(error.param.opts, key=len)}: {message.removeprefix('Value error, ').rstrip('.')}"
    if "--set" not in options:
        return ""
    if match := re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \(((?:[\w.]+=\S*\s*)+)\)", message):
        return f"{match[1]}: set keys with -s, for example {' '.join(f'-s {word}' for word in match[1].split())}"
    option = str(getattr(error, "option_name", ""))
    if message.startswith("No such option") and (key := key_of(option)):
        return f"{option}: there is no such option; set keys with -s, for example -s {key}={value_after(option, words)}"
    return ""


def key_of(option: str) -> str:
    """The key of a configuration that an option such as --rounds or --client.lr means; empty where there is none."""
    name = option.lstrip("-").replace("-", "_")
    keys = configfile.all_keys({})
    return next((key for key in keys if name == key or name == key.rpartition(".")[2]), "") if option.startswith("--") else ""


def value_after(option: str, words: Sequence[str]) -> str:
    """The value that the command line gives to an option, with a blank or = between; VALUE where it has none."""
    for word, following in zip(words, [*words[1:], "-"], strict=True):
        if word.startswith(f"{option}="):
            return word.partition("=")[2] or "VALUE"
        if word == option and not following.startswith("-"):
            return following
    return "VALUE"
