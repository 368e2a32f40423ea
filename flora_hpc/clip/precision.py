"""The number format of frozen weights in training and evaluation.

`bf16` keeps the frozen Linear layers of the towers that a step computes in bfloat16, and multiplies in bfloat16. Adapters, norms,
attention, sums and losses stay float32. Image features that are computed once have their own setting (features.compute).
With `tf32` an NVIDIA GPU multiplies float32 numbers with ten bits of mantissa.
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

NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # processor flags (x86, ARM): without them bfloat16 is slower than float32
AMPERE = (8, 0)  # compute capability of the first NVIDIA GPUs with tf32 and bfloat16


def prepare_device(precision: str, device: torch.device, key: str = "model.precision") -> None:
    """Prepare `device` for the `precision` set by `key`. Raises UserError where the device lacks it or is slower with it."""
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
    """The flags of the processor, as Linux names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.partition(":")[2].split()}


def lower(precision: str, model: Any, name: str, method: str, trained: set[str], text: bool, image: bool) -> None:
    """Convert the frozen Linear layers of an unfused `model` to `precision`, in place: `text` tower, `image` tower or both.

    `trained` names the tensors that the method trains. Raises UserError when they are weights of the model, and for a text tower
    whose own code cannot multiply in `precision`.
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
    """Weight and bias in bfloat16, as new parameters: other models may share the layer's own."""
    weight, bias = (p if p is None else nn.Parameter(p.bfloat16(), requires_grad=False) for p in (layer.weight, layer.bias))
    assert weight is not None
    return weight, bias


@contextmanager
def lowered(precision: str, tower: nn.Module) -> Iterator[None]:
    """Inside, the Linear layers of a frozen `tower` are in `precision`; afterwards their former weights are back."""
    before = {layer: (layer.weight, layer.bias) for layer in linear_layers(tower)} if precision == "bf16" else {}
    for layer in before:
        layer.weight, layer.bias = in_bf16(layer)
    try:
        yield
    finally:
        for layer, parameters in before.items():
            layer.weight, layer.bias = parameters


def linear_layers(tower: nn.Module) -> list[nn.Linear]:
    """The Linear layers that are called as layers. The pooling of CLIP's ResNets reads the weights of its layers directly."""
    pooling = {layer for module in tower.modules() if isinstance(module, AttentionPool2d) for layer in module.children()}
    return [layer for layer in tower.modules() if type(layer) is nn.Linear and layer not in pooling]
