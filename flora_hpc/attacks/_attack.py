"""The interface of an attack: pure functions over tensors, which see no rank, no file and no clock.

    labels    -> local training -> update -> transform -> the rows of all clients -> rule
    |                              |                      |
    `labels`                       `alone`                `against`

An attack defines one of the three, or a `trigger`, with or without `alone`. Attackers train like all others; what they send, or
the images and labels that they train with, are changed.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field

from flora_hpc.plugins import BaseOptions


class AttackOptions(BaseOptions):
    """Who attacks."""

    fraction: float = Field(
        0.2, gt=0, lt=1, description="share of the registered clients that attack, drawn by the seed; rounded down to whole clients"
    )


class Trigger(NamedTuple):
    """A square on images, and the class that images with it shall get."""

    size: float  # side, in shorter sides of what the model sees
    place: str  # such as top_left, or center
    target: int  # number of the class
    poisoned: float  # share of an attacker's images that have it in training


class Attack(NamedTuple):
    """What attackers do.

    `alone(update, numbers) -> update` changes one attacker's update (num_shared,) float32; `numbers` is its generator of the round.
    `labels(labels, num_classes) -> labels` are the labels that attackers train with, of any shape.
    `against(honest, num_attackers) -> row` computes what all attackers of a round send, as a whole: some columns (width,) float64
    from those of all honest clients (num_honest, width) float64, at least one. It needs a combine part that has all updates.
    `trigger` is put on images of attackers in training, and on all test images for a test of its own.
    """

    alone: Callable[[torch.Tensor, np.random.Generator], torch.Tensor] | None = None
    labels: Callable[[torch.Tensor, int], torch.Tensor] | None = None
    against: Callable[[torch.Tensor, int], torch.Tensor] | None = None
    trigger: Trigger | None = None
