"""The number format of frozen weights in training and evaluation.

`bf16` keeps the frozen Linear layers of the towers that take part in a step in bfloat16, and multiplies in it. Adapters, norms,
attention, sums and losses stay float32. Image features that are computed once have a setting of their own (features.compute).
`tf32` is how an NVIDIA GPU multiplies float32 with ten bits of mantissa.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import nn

from flora_hpc.clip.text import text_root, why_not
from flora_hpc.errors import UserError

NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # flags of processors (x86, ARM) that multiply in it; others are slower with it
AMPERE = (8, 0)  # compute capability of the first NVIDIA GPUs with tf32 and bfloat16


def prepare_device(precision: str, device: torch.device, key: str = "model.precision") -> None:
    """Prepare `device` for the precision of `key`. Raises UserError for one that it lacks, or that would only slow it down."""
    if precision != "fp32" and device.type == "cuda" and torch.cuda.get_device_capability(device) < AMPERE:
        raise UserError(
            f"{key}: {torch.cuda.get_device_name(device)} does not multiply in {precision}, which came with compute "
            f"capability 8.0; set {key}: fp32"
        )
    if precision == "tf32":
        if device.type != "cuda":
            raise UserError("model.precision: tf32 is for NVIDIA GPUs, and there is none in this run; set model.precision: fp32")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True  # devices.pick switched it off
    if precision == "bf16" and device.type == "cpu" and not NATIVE_BF16 & processor_flags():
        raise UserError(
            f"{key}: this processor does not multiply in bfloat16 (it has none of "
            f"{', '.join(sorted(NATIVE_BF16))}), so that bf16 would be slower than fp32; set {key}: fp32"
        )


def processor_flags() -> set[str]:
    """What the processor can do, as Linux names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.partition(":")[2].split()}


def lower(precision: str, model: Any, name: str, method: str, trained: set[str], text: bool, image: bool) -> None:
    """Bring the frozen Linear layers of the text tower, the image tower or both of a split `model` to `precision`, in place.

    `trained` names what the method trains. Raises UserError when that is these weights themselves, and for a text tower whose
    own code would not have it.
    """
    if precision != "bf16":
        return
    if trained & {path for path, _ in model.named_parameters()}:
        raise UserError(f"model.precision: bf16 is for frozen weights, but {method} trains them; set model.precision: fp32")
    if text and (reason := why_not(model)):
        raise UserError(f"model.precision: bf16 cannot be had with {name}, since {reason}; set model.precision: fp32")
    for tower in [text_root(model)[0].transformer] * text + [model.visual] * image:
        for layer in linear_layers(tower):
            layer.weight, layer.bias = in_bf16(layer)


def in_bf16(layer: nn.Linear) -> tuple[nn.Parameter, Any]:
    """Weight and bias as new parameters: the layer's own may belong to other models, too."""
    weight, bias = (p if p is None else nn.Parameter(p.bfloat16(), requires_grad=False) for p in (layer.weight, layer.bias))
    assert weight is not None
    return weight, bias


@contextmanager
def lowered(precision: str, tower: nn.Module) -> Iterator[None]:
    """Inside, the Linear layers of a frozen `tower` are in `precision`; then they are what they were."""
    before = {layer: (layer.weight, layer.bias) for layer in linear_layers(tower)} if precision == "bf16" else {}
    for layer in before:
        layer.weight, layer.bias = in_bf16(layer)
    try:
        yield
    finally:
        for layer, parameters in before.items():
            layer.weight, layer.bias = parameters


def linear_layers(tower: nn.Module) -> list[nn.Linear]:
    """Those that are called as layers; the pooling of CLIP's ResNets reads the weights of its own by itself."""
    read = {layer for module in tower.modules() if isinstance(module, AttentionPool2d) for layer in module.children()}
    return [layer for layer in tower.modules() if type(layer) is nn.Linear and layer not in read]
