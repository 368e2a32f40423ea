"""FedLC: a linear classifier on frozen image features, started from the zero-shot weights.

scores = W f / |f| + b, with W = logit scale times the captions' text features and b = 0 at the start, so that round 0 is
zero-shot CLIP (the classification head of Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).
"""

import numpy as np
import torch
import torch.nn.functional as F

from flora_hpc.methods._method import Init, Method, Noise, Setting, Tensors, describe, products
from flora_hpc.plugins import BaseOptions


class Options(BaseOptions):
    """There is nothing to choose."""


def build(options: Options, setting: Setting) -> Method:
    setting.needs_classes("fedlc")
    shapes, init = head(setting)
    return Method(shapes, init, classes, logits, how=describe(False, None), per_class=True)


def head(setting: Setting) -> tuple[dict[str, tuple[int, ...]], Init]:
    """Shapes and initial values of the classifier."""
    with torch.no_grad():
        weight = (setting.clip.model.logit_scale.exp() * setting.text())[0]

    def init(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        return {"classifier.weight": weight, "classifier.bias": torch.zeros(len(weight))}

    return {"classifier.weight": tuple(weight.shape), "classifier.bias": (len(weight),)}, init


def classes(tensors: Tensors, noise: Noise) -> torch.Tensor:
    return tensors["classifier.weight"]


def logits(tensors: Tensors, classes: torch.Tensor, inputs: torch.Tensor, noise: Noise) -> torch.Tensor:
    """Scores (num_clients, batch, num_classes) of features (num_clients, batch, embed_dim)."""
    return products(F.normalize(inputs, dim=-1), classes) + tensors["classifier.bias"][:, None]
