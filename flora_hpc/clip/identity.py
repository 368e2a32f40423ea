"""Digest of everything that decides the numbers a model computes: models with the same digest make the same features."""

import hashlib
import json
from typing import Any

import torch
from torch import nn

from flora_hpc.clip.load import Clip

SIMPLE = (bool, int, float, str, type(None))


def image_tower(clip: Clip) -> str:
    """Digest of the image tower: its weights, its layers with their settings, and the preprocessing of images."""
    return module(clip.model.visual, type(clip.model).__name__, json.dumps(clip.model.visual.preprocess_cfg, sort_keys=True))


def module(root: nn.Module, *also: str) -> str:
    """Digest of a module's layers, their settings (such as activation or stride), all tensors, and the strings `also`."""
    digest = hashlib.blake2b("\0".join(also).encode(), digest_size=16)
    for path, layer in root.named_modules():
        settings = {name: _plain(value) for name, value in vars(layer).items() if not name.startswith("_") and _is_plain(value)}
        digest.update(f"{path}={type(layer).__qualname__}{json.dumps(settings, sort_keys=True)}".encode())
    for path, tensor in root.state_dict().items():
        digest.update(f"{path}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_plain(value: Any) -> bool:
    return isinstance(value, SIMPLE) or (isinstance(value, tuple | list) and all(isinstance(item, SIMPLE) for item in value))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
