"""FedFFT: full fine-tuning; every weight that a score depends on is trained and sent."""

import numpy as np
import torch

from flora_hpc.clip.towers import encode, num_image_positions
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


class Options(BaseOptions):
    """There is nothing to choose."""


def build(options: Options, setting: Setting) -> Method:
    model, text = setting.clip.model, setting.text
    weights = {name: value for name, value in model.named_parameters() if not name.startswith(UNUSED)}
    image_names = [name for name in weights if name.startswith("visual.")]
    text_names = [name for name in weights if not name.startswith("visual.")]

    def init(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        return weights

    def classes(tensors: Tensors, noise: Noise, caption_rows: CaptionRows = None) -> torch.Tensor:
        return text(weights={name: tensors[name] for name in text_names}, caption_rows=caption_rows)

    def logits(tensors: Tensors, classes: torch.Tensor, inputs: torch.Tensor, noise: Noise) -> torch.Tensor:
        features = encode(model, "encode_image", inputs, weights={name: tensors[name] for name in image_names})
        return cosine_scores(tensors["logit_scale"].exp().view(-1, 1, 1), features, classes)

    return Method(
        {name: tuple(value.shape) for name, value in weights.items()},
        init,
        classes,
        logits,
        how=describe(True, text),
        sees="pixels",
        costs=costs_of(text, num_image_positions(model)),
    )
