"""Put a checkpoint's tensors into a model without copying; refuse tensors that do not fit or hold no usable numbers."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

from flora_hpc.clip import layout
from flora_hpc.errors import UserError

POSITIONS = {
    "visual.positional_embedding": resize_pos_embed,
    "positional_embedding": resize_text_pos_embed,
    "text.positional_embedding": resize_text_pos_embed,
}
MAY_BE_ZERO = ("pos", "bias", "token_type")  # parts of names of matrices that some models never use
LARGEST_SCALE = 10.0  # of logit_scale: CLIP's is at most 4.6, the logarithm of 100; 1/0.07, where training begins, is 14.3


def fill(model: Any, state: dict[str, torch.Tensor], where: str) -> None:
    """Assign the tensors of `state` to `model`, as float32 and without copies; `model` may be on device 'meta'.

    Raises UserError that names missing and surplus tensors and those of another shape; `where` names the file.
    """
    if layout.is_transformers(state):
        state = layout.to_open_clip(state, where)
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    state = convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    state.pop("text.transformer.embeddings.position_ids", None)  # of old transformers
    expected = model.state_dict()
    for name in ("logit_scale", "logit_bias"):
        if name in state and name in expected and state[name].numel() == expected[name].numel():
            state[name] = state[name].reshape(expected[name].shape)
    if "logit_bias" in expected and "logit_bias" not in state and "logit_scale" in state:
        state["logit_bias"] = torch.zeros_like(state["logit_scale"])
    for name, resize in POSITIONS.items():  # of another image size or context length: open_clip interpolates
        if name in state and name in expected and _can_be_resized(state[name], expected[name]):
            with suppress(RuntimeError, IndexError):  # no square grid: reported as another shape below
                resize(state, model)
    problems = [
        _listed("missing", [name for name in expected if name not in state]),
        _listed("surplus", [name for name in state if name not in expected]),
        _listed(
            "of another shape",
            [
                f"{name} ({_size(state[name])} in the file, {_size(expected[name])} in the model)"
                for name in expected
                if name in state and state[name].shape != expected[name].shape
            ],
        ),
        _listed("not of floating-point numbers", _odd_kinds(state, expected)),
    ]
    if any(problems):
        raise UserError(f"model.pretrained: {where} does not fit the model: {'; '.join(filter(None, problems))}")
    model.load_state_dict(state, assign=True)


def check_values(state: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise UserError for NaN, infinities, matrices of zeros, or a far too large logit_scale. `where` names the file."""
    bad: dict[str, int] = {}
    zeros: list[str] = []
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        values = tensor if tensor.element_size() > 1 else tensor.float()
        total = values.sum(dtype=torch.promote_types(values.dtype, torch.float32))
        if not total.isfinite() and (count := int(values.isfinite().logical_not().sum())):
            bad[name] = count
        elif total == 0 and tensor.ndim > 1 and not any(part in name for part in MAY_BE_ZERO) and not values.any():
            zeros.append(name)
    if bad:
        name, count = next(iter(bad.items()))
        share = f"{count:,} of its {state[name].numel():,} values {'is' if count == 1 else 'are'} NaN or infinite"
        others = f", and {len(bad) - 1:,} more tensor{'s' * (len(bad) != 2)} hold such" if len(bad) > 1 else ""
        raise UserError(
            f"model.pretrained: {where}: {name}: {share}{others}; training diverged or the file is damaged: "
            "give an earlier checkpoint or an intact copy"
        )
    if zeros:
        raise UserError(
            f"model.pretrained: {where} holds {_listed('of zeros alone', zeros)}, as where a copy broke off; "
            "copy or download it again"
        )
    scale = state.get("logit_scale")
    if scale is not None and scale.numel() == 1 and scale.item() > LARGEST_SCALE:
        raise UserError(
            f"model.pretrained: {where}: logit_scale is {scale.item():g}, but must be a logarithm (CLIP's is at most 4.6); "
            "save its logarithm"
        )


def _odd_kinds(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    """Names and number formats of tensors that are not floating-point, where the model expects floating-point."""
    plain = {name for name, tensor in state.items() if tensor.is_floating_point() and tensor.layout == torch.strided}
    names = [name for name in expected if name in state and name not in plain and expected[name].is_floating_point()]
    return [f"{name} is {str(state[name].dtype).removeprefix('torch.')}" for name in names]


def _can_be_resized(tensor: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether position embeddings (length, width) have the same width and different lengths."""
    return tensor.ndim == expected.ndim == 2 and tensor.shape[1] == expected.shape[1] and len(tensor) != len(expected)


def _listed(what: str, names: Iterable[str]) -> str:
    """'3 tensors missing (a, b, c)'; long lists are cut."""
    names = list(names)
    listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{len(names)} tensor{'s' * (len(names) != 1)} {what} ({listed})" if names else ""


def _size(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"
