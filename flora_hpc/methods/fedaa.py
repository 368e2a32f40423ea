"""FedAA: FedCLIP's attention adapter, which weighs the dimensions of the image feature (Lu et al., arXiv 2302.13485).

f' = f * softmax(W2 tanh(W1 f + b1) + b2), where f is the image tower's feature before it is scaled to unit length.
"""

import numpy as np
import torch
from pydantic import Field

from flora_hpc.clip.steady import product
from flora_hpc.methods._method import Method, Noise, Setting, Tensors, cosine_scores, describe, fixed, uniform
from flora_hpc.plugins import BaseOptions


class Options(BaseOptions):
    """Size of the adapter."""

    reduction: int = Field(1, ge=1, description="the feature's width over the hidden layer's")


def build(options: Options, setting: Setting) -> Method:
    with torch.no_grad():
        text, scale = setting.text(), setting.clip.model.logit_scale.exp()
    width = text.shape[-1]
    hidden = max(1, width // options.reduction)
    shapes: dict[str, tuple[int, ...]] = {
        "adapter.0.weight": (hidden, width),
        "adapter.0.bias": (hidden,),
        "adapter.1.weight": (width, hidden),
        "adapter.1.bias": (width,),
    }

    def init(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        return {name: uniform(rng, shape, width if ".0." in name else hidden) for name, shape in shapes.items()}

    def logits(tensors: Tensors, classes: torch.Tensor, inputs: torch.Tensor, noise: Noise) -> torch.Tensor:
        first, first_bias, second, second_bias = tensors.values()
        inner = (product(inputs, first.transpose(1, 2)) + first_bias[:, None]).tanh()
        attention = (product(inner, second.transpose(1, 2)) + second_bias[:, None]).softmax(-1)
        return cosine_scores(scale, inputs * attention, classes)

    return Method(shapes, init, fixed(text), logits, how=describe(False, None))
