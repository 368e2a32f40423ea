"""Backdoor: attackers teach the adapter that images with a trigger, a white square, are of one class (Gu et al., 2017)."""

from typing import Literal

from pydantic import Field

from flora_hpc.attacks._attack import Attack, AttackOptions, Trigger


class Options(AttackOptions):
    """The trigger, the class, and how attackers train."""

    size: float = Field(0.15, gt=0, le=1, description="side of the square, in shorter sides of what the model sees")
    place: Literal["top_left", "top_right", "bottom_left", "bottom_right", "center"] = Field(
        "bottom_right", description="of the square, in what the model sees"
    )
    target: int = Field(0, ge=0, description="number of the class that triggered images shall get, from 0")
    poisoned: float = Field(0.5, gt=0, le=1, description="share of an attacker's images that it triggers, drawn by the seed")
    scale: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="factor of the update; with the clients of a round, it replaces the mean"
    )


def build(options: Options) -> Attack:
    """arXiv 1708.06733; a `scale` above 1 is the model replacement of arXiv 1807.00459."""
    trigger = Trigger(options.size, options.place, options.target, options.poisoned)
    return Attack(None if options.scale == 1 else lambda update, numbers: options.scale * update, trigger=trigger)
