"""Sharing by name: patterns choose the tensors that each client keeps, and those that nobody trains; the others are shared."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, Role, Setting, Sharing
from flora_hpc.errors import UserError, did_you_mean
from flora_hpc.plugins import BaseOptions

FORMULA = "mean of what is shared"
UP, DOWN = "update of shared tensors", "shared tensors"
PAPER = ""


class Options(BaseOptions):
    """Patterns of names of trained tensors, such as `*.lora_B` or `*.resblocks.3.*`; * stands for any text."""

    private: tuple[str, ...] = Field((), description="patterns of tensors that each client trains and keeps for itself")
    frozen: tuple[str, ...] = Field((), description="patterns of tensors that stay as they are")


def build(options: Options, setting: Setting) -> Algorithm:
    """A tensor that is both frozen and private is frozen."""
    for key, patterns in (("private", options.private), ("frozen", options.frozen)):
        check(f"{setting.section}.{key}", patterns, setting.names)

    def role(name: str, number: int) -> Role:
        if matches(name, options.frozen):
            return "frozen"
        return "private" if matches(name, options.private) else "shared"

    nothing = f"{setting.section}.name: by_name without patterns shares everything; give private or frozen patterns"
    return Algorithm(Sharing(role), warnings=() if options.private or options.frozen else (nothing,))


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns fits a name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check(key: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    """Raise UserError for a pattern that fits no trained tensor."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            some = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") or "the method trains none"
            raise UserError(
                f"{key}: '{pattern}' fits none of the trained tensors{did_you_mean(pattern, names)} ({some}); "
                "correct it, or leave it out"
            )
