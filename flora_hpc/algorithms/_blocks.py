"""The common part of algorithms that keep some layers private: the order of the blocks of layers."""

import re
from collections.abc import Sequence

from flora_hpc.algorithms._algorithm import Algorithm, Setting, Sharing
from flora_hpc.errors import UserError

BLOCK = re.compile(r"(.*\.resblocks|.*\.layers|.*\.blocks|.*\.stages)\.(\d+)\.")


def keep(count: int, setting: Setting, name: str, from_end: bool) -> Algorithm:
    """Keep `count` blocks private, the last ones `from_end` or else the first ones. Raises UserError where no block stays shared.

    Tensors outside of blocks, such as a head, count as the last block of all.
    """
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
    """The number of each tensor's block (n,), from the input to the output."""
    matches = [BLOCK.match(f"{name}.") for name in names]
    numbers = [int(match[2]) if match else -1 for match in matches]
    after = max(numbers, default=-1) + 1
    return [after if number < 0 else number for number in numbers]
