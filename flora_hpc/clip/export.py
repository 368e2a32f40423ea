"""Export a run's trained tensors for other programs: merged into weights of open_clip or transformers, or as a PEFT adapter."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from safetensors.torch import save_file
from torch import nn

from flora_hpc.clip import adapters, layout, weights
from flora_hpc.clip.attention import Projection, by_current_names, fuse
from flora_hpc.clip.load import Clip
from flora_hpc.clip.text import why_not
from flora_hpc.config import ModelConfig
from flora_hpc.errors import UserError

Tensors = Mapping[str, torch.Tensor]

TO_TRANSFORMERS = (  # parts of a layer's name in an unfused open_clip.CLIP, and in transformers.CLIPModel
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
    (".attn.o_proj", ".self_attn.out_proj"),
    (".attn.", ".self_attn."),
    (".mlp.up_proj", ".mlp.fc1"),
    (".mlp.down_proj", ".mlp.fc2"),
    ("visual.proj.linear", "visual_projection"),
    ("text_projection.linear", "text_projection"),
)

SPECIAL = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}  # open_clip's tokens -> transformers'

OPEN_CLIP_CARD = """# {name}, adapted with {method}

Made by flora-hpc: the open_clip model {name}, with what method `{method}` trained merged into its weights.

    import open_clip
    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:<this folder>")
    tokenizer = open_clip.get_tokenizer("local-dir:<this folder>")
"""
TRANSFORMERS_CARD = """# {name} for transformers, adapted with {method}

Made by flora-hpc: a whole CLIPModel with its processor, with what method `{method}` trained merged into its weights.

    import transformers
    model = transformers.CLIPModel.from_pretrained("<this folder>")
    processor = transformers.CLIPProcessor.from_pretrained("<this folder>", backend="pil")
    inputs = processor(images=images, text=captions, return_tensors="pt", padding=True, truncation=True)

The Pillow backend (`use_fast=False` before transformers 5) gives the pixels that the run was trained on; torchvision's differ in
rounding.

The run cleaned its captions as open_clip does: curly quotes, full-width letters and HTML entities such as `&amp;` became plain
characters. A CLIPProcessor does not clean. Clean such captions first, and it gives the same tokens:

    import ftfy, html
    captions = [html.unescape(html.unescape(ftfy.fix_text(caption))) for caption in captions]
"""
LORA_CARD = """# LoRA adapter for {name} in transformers

Made by flora-hpc. `flora-hpc export <run> --to transformers --merged` writes a whole CLIPModel, which needs no PEFT and no weights
beside it. This folder is the adapter alone. It sits on a CLIPModel with the weights of the open_clip model {name}, both towers, and
its activation (`hidden_act` must be `{activation}`); on other weights it loads too, and gives other numbers:

    import peft, transformers
    model = peft.PeftModel.from_pretrained(transformers.CLIPModel.from_pretrained("<that model>"), "<this folder>")
"""


def low_rank(alpha: float | None) -> float:
    """Return `alpha`. Raises UserError where it is None, since PEFT's LoRA layout holds low-rank updates only."""
    if alpha is None:
        raise UserError(
            "this run trained no low-rank adapter, which is all that PEFT's LoRA files can hold; try --to open_clip or "
            f"--to transformers --merged, or read adapter/{adapters.PLAIN_FILE}"
        )
    return alpha


def merged(model: nn.Module, tensors: Tensors, alpha: float | None) -> dict[str, torch.Tensor]:
    """Merge the trained tensors into the state dict of an unfused model, under open_clip's own names; nothing shares memory.

    With `alpha`, `tensors` are low-rank updates: W + alpha * B A, computed in float64. Without, they replace the parameters of the
    same names. Raises UserError for tensors that have no place in the model.
    """
    tensors = fitting(model, tensors, alpha)
    state: dict[str, torch.Tensor] = model.state_dict()
    for name, tensor in tensors.items():
        if alpha is None:
            state[name] = tensor
        elif name.endswith(".lora_A"):
            layer = name.removesuffix(".lora_A")
            update = alpha * tensors[f"{layer}.lora_B"].double() @ tensor.double()
            state[f"{layer}.weight"] = (state[f"{layer}.weight"].double() + update).float()
    fused = fuse(model, state)
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in fused.items()}


def transformers_lora(model: Any, tensors: Tensors, alpha: float | None) -> tuple[Any, dict[str, torch.Tensor]]:
    """Convert low-rank updates of an unfused model for a CLIPModel: a peft.LoraConfig, and the tensors of an adapter file.

    Raises UserError when `tensors` are no low-rank updates, or a CLIPModel cannot represent the model.
    """
    alpha = low_rank(alpha)
    check_transformers(model)
    tensors = fitting(model, tensors, alpha)

    import peft

    renamed = {_rename(name): tensor.contiguous() for name, tensor in tensors.items()}
    ups = {name.removesuffix(".lora_B"): tensor for name, tensor in renamed.items() if name.endswith(".lora_B")}
    rank = next(iter(ups.values())).shape[1]
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha * rank, target_modules="|".join(map(re.escape, ups)), lora_dropout=0.0, inference_mode=True
    )
    return config, {f"{adapters.PEFT_PREFIX}{name}.weight": tensor for name, tensor in renamed.items()}


def save_open_clip(folder: Path, clip: Clip, config: ModelConfig, state: Tensors, method: str) -> None:
    """Write `state` as a directory that open_clip loads as `local-dir:<folder>`. `config` is the configuration of `clip`."""
    settings = {"model_cfg": weights.find(config).model_cfg, "preprocess_cfg": clip.model.visual.preprocess_cfg}
    folder.mkdir()
    if settings["model_cfg"]["text_cfg"].get("hf_tokenizer_name"):
        clip.tokenize.save_pretrained(folder)  # type: ignore[attr-defined] # open_clip looks for it beside the weights
    (folder / weights.CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")
    save_file(dict(state), folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    (folder / "README.md").write_text(OPEN_CLIP_CARD.format(name=clip.name, method=method))


def save_transformers(folder: Path, clip: Clip, config: Any, state: Tensors) -> None:
    """Write the result of `transformers_lora` as a PEFT adapter directory."""
    config.save_pretrained(str(folder))
    save_file(dict(state), folder / adapters.PEFT_FILE, metadata={"format": "pt"})
    (folder / "README.md").write_text(LORA_CARD.format(name=clip.name, activation=_activation(clip.model)))


def save_clip_model(folder: Path, clip: Clip, state: Tensors, method: str) -> None:
    """Write `state`, the result of `merged`, as a whole CLIPModel of transformers with its processor; nothing is fetched.

    Raises UserError when a CLIPProcessor cannot prepare images or captions as the run did.
    """
    import transformers

    preprocessor = _preprocessor(clip.model.visual.preprocess_cfg)
    tokenize: Any = clip.tokenize
    if type(tokenize) is not SimpleTokenizer or tokenize.clean_fn is not get_clean_fn("lower"):
        raise UserError("--to transformers: its tokenizer is not CLIP's own, which a CLIPProcessor needs; use --to open_clip")
    folder.mkdir()
    transformers.CLIPConfig(**_clip_config(clip), architectures=["CLIPModel"], dtype="float32").save_pretrained(str(folder))
    save_file(layout.to_transformers(state), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / layout.PREPROCESSOR_FILE).write_text(json.dumps(preprocessor, indent=2) + "\n")
    words = {SPECIAL.get(word, word): number for word, number in tokenize.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(words, ensure_ascii=False))
    merges = "\n".join(" ".join(pair) for pair in tokenize.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    tokenizer = transformers.CLIPTokenizerFast.from_pretrained(str(folder), model_max_length=tokenize.context_length)
    tokenizer.save_pretrained(str(folder))
    (folder / "README.md").write_text(TRANSFORMERS_CARD.format(name=clip.name, method=method))


def texts_with_other_tokens(folder: Path, clip: Clip, texts: Sequence[str]) -> list[str]:
    """Select the `texts` to which the tokenizer saved in `folder` gives other tokens than the run's tokenizer."""
    import transformers

    tokenizer = transformers.CLIPTokenizerFast.from_pretrained(str(folder))
    tokens = [row[: int(row.argmax()) + 1].tolist() for row in clip.tokenize(list(texts))]
    return [text for text, row in zip(texts, tokens, strict=True) if tokenizer(text, truncation=True)["input_ids"] != row]


def _clip_config(clip: Clip) -> dict[str, Any]:
    """The arguments of a transformers.CLIPConfig for an unfused open_clip.CLIP."""
    model, (start, end) = clip.model, clip.tokenize.all_special_ids  # type: ignore[attr-defined]

    def tower(positions: torch.Tensor, blocks: Any) -> dict[str, Any]:
        return {
            "hidden_size": positions.shape[1],
            "intermediate_size": blocks[0].mlp.up_proj.out_features,
            "num_hidden_layers": len(blocks),
            "num_attention_heads": blocks[0].attn.num_heads,
            "hidden_act": _activation(model),
            "projection_dim": model.text_projection.linear.out_features,
        }

    text = tower(model.positional_embedding, model.transformer.resblocks) | {
        "vocab_size": len(model.token_embedding.weight),
        "max_position_embeddings": len(model.positional_embedding),
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    vision = tower(model.visual.positional_embedding, model.visual.transformer.resblocks) | {
        "image_size": model.visual.image_size[0],
        "patch_size": model.visual.patch_size[0],
    }
    return {"text_config": text, "vision_config": vision, "projection_dim": text["projection_dim"]}


def _preprocessor(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A CLIPImageProcessor's settings for open_clip's preprocessing. Raises UserError for steps that it lacks."""
    height, width = cfg["size"] if isinstance(cfg["size"], tuple | list) else (cfg["size"], cfg["size"])
    if cfg["resize_mode"] not in ("shortest", "squash") or height != width:
        raise UserError(
            f"--to transformers: a CLIPProcessor cannot prepare images as this model has them (resize_mode {cfg['resize_mode']}, "
            f"{height} x {width}); use --to open_clip"
        )
    square, squash = {"height": height, "width": width}, cfg["resize_mode"] == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if squash else {"shortest_edge": height},
        "resample": next(number for number, name in layout.RESAMPLING.items() if name == cfg["interpolation"]),
        "do_center_crop": not squash,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(cfg["mean"]),
        "image_std": list(cfg["std"]),
    }


def _activation(model: Any) -> str:
    return "quick_gelu" if isinstance(model.transformer.resblocks[0].mlp.gelu, QuickGELU) else "gelu"


def fitting(model: nn.Module, tensors: Tensors, alpha: float | None) -> dict[str, torch.Tensor]:
    """Rename `tensors` to the current layer names of `model`. Raises UserError unless each fits a weight of the model."""
    names = list(model.state_dict())
    if alpha is not None:
        names = [f"{name.removesuffix('.weight')}.lora_{part}" for name in names if name.endswith(".weight") for part in "AB"]
    current = by_current_names(tensors, names)
    _check(model, current, alpha)
    return current


def _check(model: nn.Module, tensors: Tensors, alpha: float | None) -> None:
    """Raise UserError unless every tensor fits a weight of `model`."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    roots = {name.partition(".")[0] for name in shapes}
    if alpha is None:
        weight_shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    else:
        layers = [name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")]
        weight_shapes = {f"{at}.weight": (len(tensors[f"{at}.lora_B"]), tensors[f"{at}.lora_A"].shape[1]) for at in layers}
    for name, shape in weight_shapes.items():
        if alpha is None and name.partition(".")[0] not in roots:
            raise UserError(
                f"what this method trained, such as {name}, has no place in open_clip's weights; "
                f"read its tensors from adapter/{adapters.PLAIN_FILE}"
            )
        if shapes.get(name) != shape:
            sizes = " x ".join(map(str, shape)), " x ".join(map(str, shapes.get(name, ("nothing",))))
            raise UserError(
                f"the adapter belongs to another model: its {name} is {sizes[0]}, in the model of config.yaml it is {sizes[1]}; "
                "put back the config.yaml and adapter that the run wrote"
            )


def check_transformers(model: Any) -> None:
    """Raise UserError unless a transformers.CLIPModel computes the same as an unfused model."""
    if (reason := _why_not_transformers(model)) is not None:
        raise UserError(f"--to transformers: a CLIPModel cannot be this model, since {reason}; use --to open_clip")


def _why_not_transformers(model: Any) -> str | None:
    """The reason why an unfused model cannot be a transformers.CLIPModel; None when it can."""
    visual: Any = getattr(model, "visual", None)
    if type(model) is not open_clip.CLIP or type(visual) is not VisionTransformer:
        return f"it is a {type(model).__name__} whose image tower is a {type(visual).__name__}"
    if (reason := why_not(model)) is not None:
        return reason
    blocks = [*model.transformer.resblocks, *visual.transformer.resblocks]
    if not all(type(block) is ResidualAttentionBlock and type(block.ls_1) is nn.Identity for block in blocks):
        return "its blocks are not CLIP's own"
    if any(not isinstance(block.mlp.gelu, QuickGELU) and block.mlp.gelu.approximate != "none" for block in blocks):
        return "its activation is not CLIP's own"
    if len(set(visual.image_size)) > 1 or len(set(visual.patch_size)) > 1:
        return "its images or patches are not square"
    if visual.attn_pool is not None or visual.pool_type != "tok" or type(visual.ln_pre) is nn.Identity:
        return "its image tower is not normalized first and read at the class token"
    if not all(isinstance(head, Projection) and head.was_matrix for head in (model.text_projection, visual.proj)):
        return "its heads are not plain matrices"
    return None


def _rename(name: str) -> str:
    """Translate a layer's name in an unfused open_clip.CLIP to its name in transformers.CLIPModel."""
    for open_clip_part, transformers_part in TO_TRANSFORMERS:
        name = name.replace(open_clip_part, transformers_part)
    return name
