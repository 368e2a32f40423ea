"""Adapters on disk and on modules, through peft."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    import peft


CARD = """# LoRA adapter for {name}

Made by flora-hpc. It sits on the open_clip model {name} with its attention split into plain projections:

    import peft
    from flora_hpc.clip.attention import split
    model = peft.PeftModel.from_pretrained(split(open_clip_model), "<this folder>").base_model.model
"""


def attach(model: nn.Module, tensors: Mapping[str, torch.Tensor], alpha: float) -> "peft.PeftModel":
    """Put LoRA on the layers that `tensors` names (`<layer>.lora_A`, `<layer>.lora_B`) and fill in their values.

    PEFT scales by alpha / rank where the FLoRA paper scales by alpha, so PEFT's alpha is alpha * rank.
    """
    import peft  # seconds of imports that a run needs only when it ends

    layers = [name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")]
    rank = len(tensors[f"{layers[0]}.lora_A"])
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha * rank, lora_dropout=0.0, target_modules="|".join(re.escape(layer) for layer in layers)
    )
    wrapped = peft.get_peft_model(model, config)
    state = {f"base_model.model.{name}.weight": tensor for name, tensor in tensors.items()}
    result = peft.set_peft_model_state_dict(wrapped, state)
    assert not result.unexpected_keys, result.unexpected_keys
    return wrapped


def save(folder: Path, model: nn.Module, tensors: Mapping[str, torch.Tensor], alpha: float, name: str) -> None:
    """Write a PEFT adapter directory: adapter_config.json, adapter_model.safetensors, and how to load them.

    `name` is the model's, for people; the model itself is not written.
    """
    attach(model, tensors, alpha).save_pretrained(str(folder))
    (folder / "README.md").write_text(CARD.format(name=name))  # in place of peft's empty template
