"""FLoRA: low-rank adapters on projections of the text tower, image tower frozen (arXiv 2404.15182).

y = W x + alpha * B (A x), with alpha itself as the scale, A ~ N(0, 1/rank) and B = 0 at the start, as in the paper's code.
"""

import re
from typing import Literal

import numpy as np
import open_clip
import torch
from pydantic import Field, field_validator

from flora_hpc.clip.text import Lora, TextTower
from flora_hpc.errors import UserError
from flora_hpc.methods._method import Method, Tensors
from flora_hpc.plugins import BaseOptions

Target = Literal["text.q_proj", "text.k_proj", "text.v_proj", "text.out_proj", "text.c_fc", "text.c_proj"]


class Options(BaseOptions):
    """Size and place of the adapters."""

    rank: int = Field(2, ge=1, description="inner size of an adapter")
    alpha: float = Field(32.0, gt=0, allow_inf_nan=False, description="scale of B A x, in the paper's sense (PEFT's alpha / rank)")
    targets: tuple[Target, ...] = Field(
        ("text.out_proj",), min_length=1, description="projections of every text block that get one"
    )

    @field_validator("targets")
    @classmethod
    def _each_once(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        if len(set(targets)) < len(targets):
            raise ValueError(f"names a projection twice: {', '.join(targets)}")
        return targets


def build(options: Options, tower: TextTower, model: open_clip.CLIP) -> Method:
    """Adapters for every text block of `model`, whose captions `tower` encodes.

    Raises UserError when the rank is larger than a layer.
    """
    wanted = "|".join(re.escape(target.removeprefix("text.")) for target in options.targets)
    pattern = re.compile(rf"transformer\.resblocks\.\d+\.(attn|mlp)\.({wanted})")
    layers = {path: layer for path, layer in model.named_modules() if pattern.fullmatch(path)}
    shapes: dict[str, tuple[int, ...]] = {}
    for path, layer in layers.items():
        if options.rank > min(layer.in_features, layer.out_features):
            raise UserError(
                f"method.rank: {options.rank} is larger than {path}, which is {layer.out_features} x {layer.in_features}; lower it"
            )
        shapes[f"{path}.lora_A"] = (options.rank, layer.in_features)
        shapes[f"{path}.lora_B"] = (layer.out_features, options.rank)

    def init(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        def values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
            if name.endswith(".lora_B"):
                return torch.zeros(shape)
            return torch.from_numpy(rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(options.rank)))

        return {name: values(name, shape) for name, shape in shapes.items()}

    def logits(tensors: Tensors, features: torch.Tensor) -> torch.Tensor:
        adapters = {path: Lora(tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"]) for path in layers}
        text = tower(adapters, options.alpha)
        scores: torch.Tensor = scale * features @ text.transpose(1, 2)
        return scores

    scale = model.logit_scale.exp()
    return Method(shapes, init, logits, options.alpha)
