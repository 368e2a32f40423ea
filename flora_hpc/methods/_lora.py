"""The common part of flora, feddylora, dual_lora and fed_sb: the layers with adapters, their shapes, and the forward pass."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import nn

from flora_hpc.clip.attention import RENAMED, open_clip_name
from flora_hpc.clip.lora import Drop, Lora, dropout, join
from flora_hpc.clip.towers import encode, num_image_positions
from flora_hpc.data.images import Ints
from flora_hpc.errors import UserError
from flora_hpc.methods._method import (
    CaptionClasses,
    CaptionRows,
    Init,
    Layer,
    Merge,
    Method,
    Noise,
    Setting,
    Tensors,
    cosine_scores,
    costs_of,
    describe,
    fixed,
)
from flora_hpc.plugins import BaseOptions

PROJECTIONS = {  # target without its tower -> layers of every block, as open_clip names them
    "q_proj": ["attn.q_proj"],
    "k_proj": ["attn.k_proj"],
    "v_proj": ["attn.v_proj"],
    "out_proj": ["attn.out_proj"],
    "c_fc": ["mlp.c_fc"],
    "c_proj": ["mlp.c_proj"],
    "mlp": ["mlp.c_fc", "mlp.c_proj"],
}
BLOCKS = {"text": r"(text\.)?transformer\.resblocks\.\d+", "image": r"visual\.transformer\.resblocks\.\d+"}
HEADS = {"text": r"(text\.)?text_projection\.linear", "image": r"visual\.proj\.linear"}

Factors = Callable[[Tensors], Tensors]  # tensors (num_clients, ...) -> `<layer>.lora_A` (num_clients, rank, in) and `.lora_B`
Target = Literal[
    "text.q_proj", "text.k_proj", "text.v_proj", "text.out_proj", "text.mlp", "text.c_fc", "text.c_proj", "text.head",
    "image.q_proj", "image.k_proj", "image.v_proj", "image.out_proj", "image.mlp", "image.c_fc", "image.c_proj", "image.head",
]  # fmt: skip


class LayerOptions(BaseOptions):
    """Layers and scale of the adapters."""

    alpha: float = Field(32.0, gt=0, allow_inf_nan=False, description="scale of B A x, in the paper's sense (PEFT's alpha / rank)")
    targets: tuple[Target, ...] = Field(
        ("text.out_proj",),
        min_length=1,
        description="layers of every block that get one, or a tower's head; mlp is c_fc and c_proj; image.* trains the image tower",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of an adapter's inputs that a training step leaves out")

    @field_validator("targets")
    @classmethod
    def _each_once(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        layers = [f"{target.partition('.')[0]}.{layer}" for target in targets for layer in _layers(target)]
        if twice := sorted({layer for layer in layers if layers.count(layer) > 1}):
            raise ValueError(f"names a layer twice: {', '.join(twice)}")
        return targets


class LoraOptions(LayerOptions):
    """Layers, scale and initial values of the adapters."""

    init: Literal["normal", "kaiming"] = Field(
        "normal", description="values of A: normal with variance 1/rank (the paper's), or PEFT's kaiming uniform"
    )


def _layers(target: str) -> list[str]:
    return PROJECTIONS.get(target.partition(".")[2], ["head"])


def find_layers(model: nn.Module, targets: tuple[Target, ...], name: str) -> dict[str, nn.Linear]:
    """The Linear layers that `targets` name in an unfused model, by path. Raises UserError for a target that is absent."""
    paths: set[str] = set()
    for target in targets:
        tower, _, part = target.partition(".")
        parts = [re.escape(RENAMED.get(layer, layer)) for layer in PROJECTIONS.get(part, [])]
        pattern = HEADS[tower] if part == "head" else rf"{BLOCKS[tower]}\.({'|'.join(parts)})"
        target_paths = {path for path, layer in model.named_modules() if re.fullmatch(pattern, path) and type(layer) is nn.Linear}
        if not target_paths:
            raise UserError(f"method.targets: {name} has no {target}; its {tower} tower is built otherwise; leave it out")
        paths |= target_paths
    return {path: layer for path, layer in model.named_modules() if path in paths}  # in the model's order, not the user's


def build(options: LoraOptions, setting: Setting, rank: int, key: str, private_rank: int = 0) -> Method:
    """Put adapters of `rank` on the targets, and second ones of `private_rank` beside them, unless that is 0.

    Raises UserError for an absent target or, naming the option `key` or private_rank, a rank too large.
    """
    layers = find_layers(setting.clip.model, options.targets, setting.clip.name)
    shapes = shapes_of(layers, {"lora": (rank, key), "private": (private_rank, "method.private_rank")})
    method = on_layers(options, setting, layers, shapes, initial_values(shapes, options.init))
    return replace(method, layers=layers_of(shapes, options.alpha), merge=merge_into(layers, options.alpha))


def on_layers(
    options: LayerOptions,
    setting: Setting,
    layers: Mapping[str, nn.Linear],
    shapes: Mapping[str, tuple[int, ...]],
    init: Init,
    factors: Factors = join,
) -> Method:
    """A method whose tensors of these `shapes` change `layers`, by path; `factors(tensors)` makes the A and B of each layer."""
    model = setting.clip.model
    text_layers = [path for path in layers if not path.startswith("visual.")]
    image_layers = [path for path in layers if path.startswith("visual.")]
    scale, text = model.logit_scale.exp(), setting.text
    number = {path: i for i, path in enumerate(layers)}

    def adapters(paths: list[str], tensors: Tensors, noise: Noise) -> Mapping[str, Lora]:
        def drop(path: str) -> Drop | None:
            if noise is None or not options.dropout:
                return None
            return dropout(options.dropout, [seed + number[path] for seed in noise])  # another mask for every layer

        whole = factors(tensors)
        return {path: Lora(whole[f"{path}.lora_A"], whole[f"{path}.lora_B"], options.alpha, drop(path)) for path in paths}

    if text_layers:

        def trained_classes(tensors: Tensors, noise: Noise, caption_rows: CaptionRows = None) -> torch.Tensor:
            return text(adapters(text_layers, tensors, noise), caption_rows=caption_rows)

        classes: CaptionClasses = trained_classes
    else:
        with torch.no_grad():
            classes = fixed(text())

    def logits(tensors: Tensors, classes: torch.Tensor, inputs: torch.Tensor, noise: Noise) -> torch.Tensor:
        if image_layers:
            inputs = encode(model, "encode_image", inputs, adapters(image_layers, tensors, noise))
        return cosine_scores(scale, inputs, classes)

    return Method(
        shapes,
        init,
        classes,
        logits,
        how=describe(bool(image_layers), text if text_layers else None),
        sees="pixels" if image_layers else "features",
        costs=costs_of(text if text_layers else None, num_image_positions(model) if image_layers else 0),
        alpha=options.alpha,
        noisy=options.dropout > 0,
    )


def shapes_of(layers: Mapping[str, nn.Linear], ranks: Mapping[str, tuple[int, str]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the A and B of each layer's adapters, `ranks` by their names (none where 0), each with the option that says it."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, layer in layers.items():
        for name, (rank, key) in ranks.items():
            if rank > min(layer.in_features, layer.out_features):
                where = open_clip_name(path)
                raise UserError(
                    f"{key}: {rank} is larger than {where}, which is {layer.out_features} x {layer.in_features}; lower it"
                )
            if rank:
                shapes[f"{path}.{name}_A"] = (rank, layer.in_features)
                shapes[f"{path}.{name}_B"] = (layer.out_features, rank)
    return shapes


def layers_of(shapes: Mapping[str, tuple[int, ...]], alpha: float) -> tuple[Layer, ...]:
    """The low-rank adapters whose tensors have these `shapes`, in their order."""
    layers = []
    for a, (rank, width) in shapes.items():
        if a.endswith("_A"):
            path, b = a.rpartition(".")[0], f"{a.removesuffix('_A')}_B"
            layers.append(Layer(path, a, b, alpha, (shapes[b][0], width), rank))
    return tuple(layers)


def merge_into(layers: Mapping[str, nn.Linear], alpha: float) -> Merge:
    """Change the frozen weights of `layers`, by path. Other runs may share the tensors, so the layers get new ones."""
    originals: dict[str, torch.Tensor] = {}

    def merge(matrices: Tensors) -> None:
        sums: dict[str, torch.Tensor] = {}
        for name, matrix in matrices.items():
            path = name.rpartition(".")[0]
            sums[path] = sums[path] + matrix if path in sums else matrix
        for path, matrix in sums.items():
            weight = originals.setdefault(path, layers[path].weight)  # at the first call, when its precision is that of the run
            changed = weight.float() + alpha * matrix.to(weight.device)
            layers[path].weight = nn.Parameter(changed.to(weight.dtype), requires_grad=False)

    return merge


def initial_values(shapes: Mapping[str, tuple[int, ...]], kind: str) -> Init:
    """The initial values of adapters: every A (rank, in) as `LoraOptions.init` says, every B zero."""

    def values(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name.endswith("_B"):
            return torch.zeros(shape)
        if kind == "kaiming":  # kaiming_uniform_(a=sqrt(5)), as peft and Hu et al. (ICLR 2022) have it
            return torch.from_numpy(rng.uniform(-(shape[1] ** -0.5), shape[1] ** -0.5, shape).astype(np.float32))
        return torch.from_numpy(rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[0])))

    return lambda rng: {name: values(rng, name, shape) for name, shape in shapes.items()}


def mask_of_ranks(shapes: Mapping[str, tuple[int, ...]], ranks: Ints) -> torch.Tensor:
    """Mask (n, num_params) bool of the numbers that clients of `ranks` (n,) hold: the first rows of A, the first columns of B."""
    masks = []
    for name, shape in shapes.items():
        if name.endswith(".lora_A"):
            mask = np.broadcast_to((np.arange(shape[0]) < ranks[:, None])[:, :, None], (len(ranks), *shape))
        else:
            mask = np.broadcast_to((np.arange(shape[1]) < ranks[:, None])[:, None, :], (len(ranks), *shape))
        masks.append(torch.from_numpy(mask.reshape(len(ranks), -1)))
    return torch.cat(masks, 1)
