"""FedCA: CLIP-Adapter, a small bottleneck whose output is mixed into the image feature (Gao et al., arXiv 2110.04544).

f' = ratio * relu(W2 relu(W1 f)) + (1 - ratio) * f. The scale of f does not matter, so f of unit length would give the same.
"""

import numpy as np
import torch
from pydantic import Field

from flora_hpc.clip.steady import product
from flora_hpc.methods._method import Method, Noise, Setting, Tensors, cosine_scores, describe, fixed, uniform
from flora_hpc.plugins import BaseOptions


class Options(BaseOptions):
    """Size and weight of the adapter."""

    reduction: int = Field(4, ge=1, description="the feature's width over the bottleneck's")
    ratio: float = Field(0.2, ge=0, le=1, description="share of the adapter's output in the new feature")


def build(options: Options, setting: Setting) -> Method:
    with torch.no_grad():
        text, scale = setting.text(), setting.clip.model.logit_scale.exp()
    width = text.shape[-1]
    hidden = max(1, width // options.reduction)
    shapes: dict[str, tuple[int, ...]] = {"adapter.0.weight": (hidden, width), "adapter.1.weight": (width, hidden)}

    def init(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        return {name: uniform(rng, shape, shape[1]) for name, shape in shapes.items()}

    def logits(tensors: Tensors, classes: torch.Tensor, inputs: torch.Tensor, noise: Noise) -> torch.Tensor:
        inner = product(inputs, tensors["adapter.0.weight"].transpose(1, 2)).relu()
        adapted = product(inner, tensors["adapter.1.weight"].transpose(1, 2)).relu()
        return cosine_scores(scale, options.ratio * adapted + (1 - options.ratio) * inputs, classes)

    return Method(shapes, init, fixed(text), logits, how=describe(False, None))
