"""The number format of frozen weights in training and evaluation.

`bf16` keeps the frozen Linear layers of the towers that take part in a step in bfloat16, and multiplies in it. Adapters, norms,
attention, sums and losses stay float32, and so do image features that are computed once. `tf32` is how an NVIDIA GPU multiplies
float32 with ten bits of mantissa.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from flora_hpc.clip.text import text_root, why_not
from flora_hpc.errors import UserError

NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # flags of processors (x86, ARM) that multiply in it; others are slower with it
AMPERE = (8, 0)  # compute capability of the first NVIDIA GPUs with tf32 and bfloat16


def settle(precision: str, device: torch.device) -> None:
    """Prepare `device` for a precision. Raises UserError for one that it does not have, or that would only slow it down."""
    if precision != "fp32" and device.type == "cuda" and torch.cuda.get_device_capability(device) < AMPERE:
        raise UserError(
            f"model.precision: {torch.cuda.get_device_name(device)} does not multiply in {precision}, which came with compute "
            "capability 8.0; set model.precision: fp32"
        )
    if precision == "tf32":
        if device.type != "cuda":
            raise UserError("model.precision: tf32 is for NVIDIA GPUs, and there is none in this run; set model.precision: fp32")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    if precision == "bf16" and device.type == "cpu" and not NATIVE_BF16 & processor_flags():
        raise UserError(
            "model.precision: this processor does not multiply in bfloat16 (it has none of "
            f"{', '.join(sorted(NATIVE_BF16))}), so that bf16 would be slower than fp32; set model.precision: fp32"
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
    towers = [text_root(model)[0].transformer] * text + [model.visual] * image
    for layer in (layer for tower in towers for layer in tower.modules() if type(layer) is nn.Linear):
        layer.to(torch.bfloat16)
