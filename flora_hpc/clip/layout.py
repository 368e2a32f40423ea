"""Convert between open_clip's CLIP and transformers' CLIPModel: names and shapes of tensors, configuration, preprocessing."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flora_hpc import extras
from flora_hpc.errors import UserError

CONFIG_FILE, PREPROCESSOR_FILE = "config.json", "preprocessor_config.json"
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")  # best first
TABLE = (  # parts of a tensor's name: transformers', and open_clip's
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("visual_projection.weight", "visual.proj"),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_projection.weight", "text_projection"),
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)
HEADS = ("visual.proj", "text_projection")
ATTENTION = re.compile(r"(.*)\.self_attn\.q_proj\.(weight|bias)")
FUSED = re.compile(r"(.*)\.attn\.in_proj_(weight|bias)")
VOCABULARY = 49408  # tokens of CLIP's own tokenizer, which open_clip brings
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # of Pillow
EPSILON = 1e-5


def is_transformers(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether tensors are named as in transformers' CLIPModel."""
    return any(name.startswith(("text_model.", "vision_model.")) for name in state)


def to_open_clip(state: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """Convert a CLIPModel's tensors to open_clip's names: q, k and v fused, projections transposed. `where` names their file.

    Raises UserError for a single tower, and for towers of another model than CLIP.
    """
    for tower, other in (("text_model.", "image"), ("vision_model.", "text")):
        if not any(name.startswith(tower) for name in state):
            raise UserError(
                f"model.pretrained: {where} holds the {other} tower of a CLIPModel alone; give the weights of both towers"
            )
    if "vision_model.head.probe" in state:
        raise UserError(f"model.pretrained: {where} is a SigLIP of transformers, not a CLIPModel; give open_clip's weights of it")
    rest = {name: tensor for name, tensor in state.items() if not name.endswith("embeddings.position_ids")}
    result: dict[str, torch.Tensor] = {}
    for name in list(rest):
        match = ATTENTION.fullmatch(name)
        parts = [f"{match[1]}.self_attn.{part}_proj.{match[2]}" for part in "qkv"] if match else []
        if match and all(part in rest and rest[part].ndim == rest[name].ndim for part in parts):
            result[_renamed(f"{match[1]}.attn.in_proj_{match[2]}", 0)] = torch.cat([rest.pop(part) for part in parts])
    for name, tensor in rest.items():
        open_clip_name = _renamed(name, 0)
        result[open_clip_name] = tensor.T.contiguous() if open_clip_name in HEADS and tensor.ndim == 2 else tensor
    return result


def to_transformers(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert the tensors of a plain open_clip.CLIP to the names of transformers' CLIPModel."""
    result: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if match := FUSED.fullmatch(name):
            for part, value in zip("qkv", tensor.chunk(3), strict=True):
                result[_renamed(f"{match[1]}.self_attn.{part}_proj.{match[2]}", 1)] = value.clone()
        else:
            result[_renamed(name, 1)] = tensor.T.contiguous() if name in HEADS else tensor
    return result


def _renamed(name: str, column: int) -> str:
    """Translate a name from TABLE's `column`, 0 or 1, to the other column."""
    for pair in TABLE:
        name = name.replace(pair[column], pair[1 - column])
    return name


def read_config(folder: Path) -> dict[str, Any] | None:
    """Read a folder's config.json; None when there is none. Raises UserError for an unreadable file."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"model.pretrained: {file} is not readable JSON ({error}); copy or download it again") from None
    return config if isinstance(config, dict) else {}


def architecture(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Convert the `config` of a CLIPModel in `folder` for open_clip.create_model: embed_dim, quick_gelu, vision_cfg, text_cfg.

    Raises UserError for a model that is not a CLIPModel, or that open_clip's CLIP cannot represent.
    """
    at, kind = f"model.pretrained: {folder / CONFIG_FILE}", config.get("model_type")
    if kind in ("clip_text_model", "clip_vision_model"):
        raise UserError(f"{at} describes one tower alone ({kind}); give the folder of a whole CLIPModel")
    if kind != "clip":
        raise UserError(
            f"{at} describes a model of type {kind!r}, not transformers' CLIPModel ('clip'); "
            "give a CLIPModel, or the weights of an open_clip model with its model.name"
        )
    extras.need(at, "transformers")
    import transformers  # the import takes seconds, and only such folders need it

    try:
        whole = transformers.CLIPConfig.from_dict(config)
        text, vision = whole.text_config, whole.vision_config
        size, patch = (_square(value) for value in (vision.image_size, vision.patch_size))
        cfg = {
            "embed_dim": whole.projection_dim,
            "quick_gelu": text.hidden_act == "quick_gelu",
            "vision_cfg": {
                "image_size": size,
                "layers": vision.num_hidden_layers,
                "width": vision.hidden_size,
                "head_width": vision.hidden_size // vision.num_attention_heads,
                "mlp_ratio": _mlp_ratio(vision),
                "patch_size": patch,
            },
            "text_cfg": {
                "context_length": text.max_position_embeddings,
                "vocab_size": text.vocab_size,
                "width": text.hidden_size,
                "heads": text.num_attention_heads,
                "layers": text.num_hidden_layers,
                "mlp_ratio": _mlp_ratio(text),
            },
        }
        reason = _why_not(text, vision)
    except Exception as error:  # transformers' checks of a configuration raise any exception
        raise UserError(
            f"{at} is not a CLIPModel's: {' '.join(str(error).split())[:200]}; put back the one it was saved with"
        ) from None
    if reason is not None:
        raise UserError(f"{at}: open_clip's CLIP cannot be this model, since {reason}; give another model")
    return cfg


def _mlp_ratio(config: Any) -> float:
    """The ratio from which open_clip computes, by int(width * ratio), exactly the inner width of a tower's MLPs."""
    ratio = float(config.intermediate_size / config.hidden_size)
    return ratio if int(config.hidden_size * ratio) == config.intermediate_size else math.nextafter(ratio, math.inf)


def _square(value: Any) -> Any:
    """A size in open_clip's form: one number where height and width are equal, else both."""
    sizes = list(value) if isinstance(value, list | tuple) else [value]
    return sizes[0] if len(set(sizes)) == 1 else tuple(sizes)


def _why_not(text: Any, vision: Any) -> str | None:
    """The reason why open_clip's CLIP cannot represent a CLIPModel of this configuration; None when it can."""
    if text.hidden_act != vision.hidden_act or text.hidden_act not in ("gelu", "quick_gelu"):
        return f"its hidden_act is {text.hidden_act} in the text tower and {vision.hidden_act} in the image tower"
    if {text.layer_norm_eps, vision.layer_norm_eps} != {EPSILON}:
        return f"its layer_norm_eps is {text.layer_norm_eps:g} and {vision.layer_norm_eps:g}, not {EPSILON:g}"
    if text.vocab_size != VOCABULARY:
        return f"its vocabulary has {text.vocab_size:,} tokens and CLIP's tokenizer {VOCABULARY:,}"
    if text.eos_token_id not in (2, VOCABULARY - 1):  # 2, of old configurations, means the largest number
        return f"its eos_token_id is {text.eos_token_id}, not {VOCABULARY - 1}, where CLIP reads a caption's feature"
    if vision.num_channels != 3:
        return f"its images have {vision.num_channels} channels"
    return None


def preprocessing(folder: Path, image_size: Any) -> dict[str, Any]:
    """Convert a folder's preprocessor_config.json to open_clip's preprocessing of images; without the file, CLIP's own.

    Raises UserError for steps that open_clip lacks.
    """
    file = folder / PREPROCESSOR_FILE
    try:
        settings = json.loads(file.read_text()) if file.is_file() else {}
        size, crop = settings.get("size", image_size), settings.get("crop_size", image_size)
        squash = isinstance(size, dict) and "height" in size
        sizes = {_side(size), _side(crop)} if settings.get("do_center_crop", True) else {_side(size)}
        steps = ["do_resize", "do_rescale", "do_normalize"] + ["do_center_crop"] * (not squash)
        interpolation = RESAMPLING.get(settings.get("resample", 3))
        is_supported = (
            all(settings.get(step, True) for step in steps)
            and sizes == {image_size}
            and interpolation is not None
            and abs(settings.get("rescale_factor", 1 / 255) - 1 / 255) <= 1e-6
        )
        numbers = {name: _channels(settings[f"image_{name}"]) for name in ("mean", "std") if f"image_{name}" in settings}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"model.pretrained: {file} is not a CLIP's preprocessing; put back the one it was saved with") from None
    if not is_supported:
        raise UserError(
            f"model.pretrained: {file} prepares images otherwise than CLIP does: it must resize, crop to {image_size} pixels, "
            "rescale by 1/255 and normalize, with bicubic or bilinear resampling; give a folder that does"
        )
    return numbers | {"interpolation": interpolation, "resize_mode": "squash" if squash else "shortest"}


def _channels(values: Any) -> tuple[float, float, float]:
    """Three numbers, one for each colour. Raises ValueError for other values."""
    red, green, blue = map(float, values)
    return red, green, blue


def _side(size: Any) -> Any:
    """The side of a square size in one of the forms that transformers writes."""
    if isinstance(size, dict):
        size = size["shortest_edge"] if "shortest_edge" in size else [size["height"], size["width"]]
    return _square(size)
