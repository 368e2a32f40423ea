"""FedVM-LC: the image tower and a linear classifier on its features are trained; the classifier starts at the zero-shot weights."""

import numpy as np
import torch

from flora_hpc.clip.towers import encode, num_image_positions
from flora_hpc.methods import fedlc
from flora_hpc.methods._method import Method, Noise, Setting, Tensors, costs_of, describe
from flora_hpc.plugins import BaseOptions


class Options(BaseOptions):
    """There is nothing to choose."""


def build(options: Options, setting: Setting) -> Method:
    setting.needs_classes("fedvmlc")
    model = setting.clip.model
    tower = {name: value for name, value in model.named_parameters() if name.startswith("visual.")}
    shapes, head_init = fedlc.head(setting)

    def init(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        return head_init(rng) | tower

    def logits(tensors: Tensors, classes: torch.Tensor, inputs: torch.Tensor, noise: Noise) -> torch.Tensor:
        features = encode(model, "encode_image", inputs, weights={name: tensors[name] for name in tower})
        return fedlc.logits(tensors, classes, features, noise)

    return Method(
        shapes | {name: tuple(value.shape) for name, value in tower.items()},
        init,
        fedlc.classes,
        logits,
        how=describe(True, None),
        sees="pixels",
        per_class=True,
        costs=costs_of(None, num_image_positions(model)),
    )
