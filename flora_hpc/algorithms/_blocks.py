"""The common part of algorithms that keep some layers private: the order of the blocks of layers."""

import re
from collections.abc import Sequence

from flora_hpc.algorithms._algorithm import Algorithm, Setting, Sharing
from flora_hpc.errors import UserError

BLOCK = re.compile(r"(?:.*\.)?resblocks\.(\d+)\.")
HEAD = re.compile(r"(?:text\.)?text_projection\b|visual\.(?:proj|head)\b")


def keep(count: int, setting: Setting, name: str, from_end: bool) -> Algorithm:
    """Keep `count` blocks private, the last ones `from_end` or else the first ones. Raises UserError where no block stays shared.

    A tower's head counts as the last block of all. Raises UserError for other tensors outside of blocks, such as embeddings.
    """
    outside = [tensor for tensor in setting.names if not BLOCK.match(tensor) and not HEAD.match(tensor)]
    if outside:
        raise UserError(
            f"{setting.section}.name: {name} counts layers in blocks of the towers, and {outside[0]} lies in none; "
            "take method.name: flora, or by_name with patterns of your own"
        )
    places = order(setting.names)
    blocks = sorted(set(places))
    if count >= len(blocks):
        raise UserError(
            f"{setting.section}.num_private: {name} keeps {count} blocks of layers private, but the method trains tensors of "
            f"{len(blocks)} only, and one must be shared; lower num_private, or take a method with more blocks"
        )
    private = set(blocks[-count:] if from_end else blocks[:count])
    place_of = dict(zip(setting.names, places, strict=True))
    return Algorithm(Sharing(lambda tensor, number: "private" if place_of[tensor] in private else "shared"))


def order(names: Sequence[str]) -> list[int]:
    """The number of each tensor's block (n,), from the input to the output; a head comes after all blocks."""
    numbers = [int(match[1]) if (match := BLOCK.match(name)) else -1 for name in names]
    after = max(numbers, default=-1) + 1
    return [after if number < 0 else number for number in numbers]
