"""Load an open_clip model: frozen, in evaluation mode, its attention split."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors import SafetensorError

from flora_hpc.clip.attention import split
from flora_hpc.config import ModelConfig
from flora_hpc.errors import UserError, did_you_mean

BUNDLED = "flora-tiny"


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP with what belongs to it."""

    model: open_clip.CLIP
    preprocess: Callable[[Any], torch.Tensor]  # PIL image -> (3, height, width) float32
    tokenize: Callable[[list[str]], torch.Tensor]  # captions -> (num_captions, context_length) int64
    name: str


def load(config: ModelConfig, seed: int, device: torch.device) -> Clip:
    """Build the model that `config` names on `device`. On device 'meta' its tensors have shapes but no values.

    Raises UserError for a name, tag or file that does not exist or does not fit.
    """
    name, pretrained = _source(config)
    values = device.type != "meta"
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)  # open_clip narrates; what matters comes as an exception
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu" if values else "meta"):
            torch.manual_seed(seed)
            model = open_clip.create_model(
                name,
                pretrained=pretrained if values else None,  # open_clip would download weights only to look at shapes
                load_weights=values,
                require_pretrained=values and config.pretrained != "none",
                force_quick_gelu=bool(open_clip.get_pretrained_cfg(config.name, pretrained or "").get("quick_gelu")),
                device="cpu" if values else "meta",
            )
    except (RuntimeError, OSError, ValueError, EOFError, UnpicklingError, SafetensorError) as error:
        raise UserError(f"model: {config.name} does not load from '{config.pretrained}': {' '.join(str(error).split())}") from None
    finally:
        logging.disable(level)
    model.eval().requires_grad_(False)
    preprocess = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    return Clip(split(model).to(device), preprocess, open_clip.get_tokenizer(name), config.name)


def _source(config: ModelConfig) -> tuple[str, str | None]:
    """open_clip's name and `pretrained` for this configuration."""
    if config.name == BUNDLED:
        if config.pretrained is not None:
            raise UserError(f"model.pretrained: {BUNDLED} brings its weights; leave model.pretrained away")
        return f"local-dir:{files('flora_hpc.clip.flora_tiny')}", None
    names = [*open_clip.list_models(), BUNDLED]
    if config.name not in names:
        raise UserError(
            f"model.name: no model '{config.name}'{did_you_mean(config.name, names)} "
            f"(choose {BUNDLED} or a name of open_clip.list_models())"
        )
    tags = open_clip.list_pretrained_tags_by_model(config.name)
    if config.pretrained is None:
        raise UserError(
            f"model.pretrained: {config.name} needs weights: an open_clip tag ({', '.join(tags) or 'it has none'}), "
            "a weights file, or 'none' for random ones"
        )
    if config.pretrained == "none":
        return config.name, None
    if config.pretrained not in tags and not Path(config.pretrained).is_file():
        raise UserError(
            f"model.pretrained: '{config.pretrained}' is neither a file nor a tag of {config.name}"
            f"{did_you_mean(config.pretrained, tags)} ({', '.join(tags) or 'it has no tags'})"
        )
    return config.name, config.pretrained
