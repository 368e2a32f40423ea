"""Zero-shot CLIP: nothing is trained; the baseline of every other method."""

import torch

from flora_hpc.methods._method import Method, Noise, Setting, Tensors, cosine_scores, describe, fixed
from flora_hpc.plugins import BaseOptions


class Options(BaseOptions):
    """There is nothing to choose."""


def build(options: Options, setting: Setting) -> Method:
    with torch.no_grad():
        text, scale = setting.text(), setting.clip.model.logit_scale.exp()

    def logits(tensors: Tensors, classes: torch.Tensor, inputs: torch.Tensor, noise: Noise) -> torch.Tensor:
        return cosine_scores(scale, inputs, classes)

    return Method({}, lambda rng: {}, fixed(text), logits, how=describe(False, None))
