"""FedText: the whole text tower is trained; the image tower and the logit scale stay frozen."""

import numpy as np
import torch

from flora_hpc.methods._method import (
    UNUSED,
    CaptionRows,
    Method,
    Noise,
    Setting,
    Tensors,
    cosine_scores,
    costs_of,
    describe,
)
from flora_hpc.plugins import BaseOptions

NOT_TEXT = ("visual.", "logit_scale", *UNUSED)


class Options(BaseOptions):
    """There is nothing to choose."""


def build(options: Options, setting: Setting) -> Method:
    model, text = setting.clip.model, setting.text
    scale = model.logit_scale.exp()
    weights = {name: value for name, value in model.named_parameters() if not name.startswith(NOT_TEXT)}

    def init(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        return weights

    def classes(tensors: Tensors, noise: Noise, caption_rows: CaptionRows = None) -> torch.Tensor:
        return text(weights=tensors, caption_rows=caption_rows)

    def logits(tensors: Tensors, classes: torch.Tensor, inputs: torch.Tensor, noise: Noise) -> torch.Tensor:
        return cosine_scores(scale, inputs, classes)

    return Method(
        {name: tuple(value.shape) for name, value in weights.items()},
        init,
        classes,
        logits,
        how=describe(False, text),
        costs=costs_of(text),
    )
