"""Save, read and attach the trained tensors of a run: LoRA in PEFT's layout, all others as tensors by name."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from flora_hpc.clip.attention import by_current_names
from flora_hpc.clip.lora import SHARED, join, separate
from flora_hpc.errors import UserError

if TYPE_CHECKING:
    import peft

PEFT_FILE, PEFT_CONFIG_FILE, PLAIN_FILE = "adapter_model.safetensors", "adapter_config.json", "trained.safetensors"
MERGED_FILE = "merged.json"  # the layers of an adapter that holds merged weights
NOTHING: Mapping[str, torch.Tensor] = MappingProxyType({})
NEGLIGIBLE = 2.0**-22  # of the largest singular value: the float32 rounding of merged matrices
PEFT_PREFIX = "base_model.model."
PEFT_CONSTANTS: dict[str, Any] = {  # of every LoRA adapter; no `peft_version`, since PEFT before 0.18 warns of it
    "alpha_pattern": {},
    "base_model_name_or_path": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "modules_to_save": None,
    "peft_type": "LORA",
    "rank_pattern": {},
    "revision": None,
    "task_type": None,
    "use_dora": False,
    "use_rslora": False,
}

LORA_CARD = """# LoRA adapter for {name}

Made by flora-hpc. For any other program, first merge it into whole weights. They need neither flora-hpc nor PEFT:

    flora-hpc export <run> --to open_clip                # open_clip.create_model("local-dir:<export>")
    flora-hpc export <run> --to transformers --merged    # transformers.CLIPModel.from_pretrained("<export>")

PEFT loads this folder on the open_clip model {name} after flora-hpc has unfused its attention and heads into plain Linear layers:

    import peft
    from flora_hpc.clip.attention import unfuse
    model = peft.PeftModel.from_pretrained(unfuse(open_clip_model), "<this folder>").base_model.model

On a model that is not unfused, PEFT says "Target modules ... not found in the base model". open_clip's own attention would not
read an adapter there, and nothing would change.
"""
PLAIN_CARD = """# {method} for {name}

Made by flora-hpc: the trained tensors of method `{method}` in `trained.safetensors`, by name. What stands under the name of a
parameter replaces it in the open_clip model {name}, its attention and heads split (flora_hpc.clip.attention.unfuse).
`flora-hpc export <run> --to open_clip` merges what belongs to a CLIP's own weights; `flora-hpc evaluate <run>` takes any method.
"""


def attach(model: nn.Module, tensors: Mapping[str, torch.Tensor], alpha: float) -> "peft.PeftModel":
    """Put LoRA on the layers that `tensors` names (`<layer>.lora_A`, `<layer>.lora_B`) and fill in their values.

    This changes `model`.
    """
    import peft  # the import takes seconds, and no run needs it

    wrapped = peft.get_peft_model(model, peft.LoraConfig(**_lora(tensors, alpha), lora_dropout=0.0))
    result = peft.set_peft_model_state_dict(wrapped, _peft_state(tensors))
    assert not result.unexpected_keys, result.unexpected_keys
    return wrapped


def _lora(tensors: Mapping[str, torch.Tensor], alpha: float) -> dict[str, Any]:
    """Rank, scale and layers of low-rank updates, by the names of peft.LoraConfig.

    PEFT scales by alpha / rank where the FLoRA paper scales by alpha, so PEFT's alpha is alpha * rank.
    """
    layers = [name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")]
    rank = len(tensors[f"{layers[0]}.lora_A"])
    return {"r": rank, "lora_alpha": alpha * rank, "target_modules": "|".join(re.escape(layer) for layer in layers)}


def _peft_state(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{PEFT_PREFIX}{name}.weight": tensor.contiguous() for name, tensor in tensors.items()}


def _peft_config(model: nn.Module, tensors: Mapping[str, torch.Tensor], alpha: float) -> dict[str, Any]:
    """The fields of adapter_config.json that describe the adapter. PEFT's loader takes its defaults for all other fields."""
    kind = type(model)
    mapping = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    return PEFT_CONSTANTS | _lora(tensors, alpha) | {"auto_mapping": mapping}


def save(
    folder: Path,
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    alpha: float | None,
    name: str,
    method: str,
    classes: Sequence[str] = (),
    merged: Mapping[str, torch.Tensor] = NOTHING,
) -> None:
    """Write the trained `tensors`: low-rank updates (with `alpha`) as a PEFT adapter directory, others as `trained.safetensors`.

    PEFT is not imported: that would take seconds at the end of every run. `name` is the model's name, for people. The model is
    neither written nor changed. `classes` names the classes that the tensors belong to, if they belong to classes. Two adapters of
    a layer are written as one of both ranks, which computes the same and which PEFT reads. So are an adapter and what the run
    `merged` into the layer's weight, by names of A: `with_merged`.
    """
    folder.mkdir(parents=True)
    if alpha is not None:
        tensors = join(with_merged(tensors, merged))
        save_file(_peft_state(tensors), folder / PEFT_FILE, metadata={"format": "pt"})
        if merged:  # a file, since safetensors writes several metadata in any order
            (folder / MERGED_FILE).write_text(
                json.dumps(sorted(name.removesuffix(f"{SHARED}A") for name in merged if SHARED in name), indent=2)
            )
        (folder / PEFT_CONFIG_FILE).write_text(json.dumps(_peft_config(model, tensors, alpha), indent=2, sort_keys=True))
        (folder / "README.md").write_text(LORA_CARD.format(name=name))
    else:
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, folder / PLAIN_FILE, metadata={"classes": json.dumps(list(classes))})
        (folder / "README.md").write_text(PLAIN_CARD.format(name=name, method=method))
    for file in folder.iterdir():
        file.chmod(folder.stat().st_mode & 0o666)  # safetensors makes its files readable by their owner only


class Stored(NamedTuple):
    """Trained tensors as `save` wrote them."""

    file: Path
    tensors: dict[str, torch.Tensor]  # float32
    alpha: float | None  # None where the tensors are no low-rank updates
    classes: list[str]  # names of the classes that the tensors belong to; empty where they belong to none


def with_merged(tensors: Mapping[str, torch.Tensor], merged: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """One adapter for each layer that computes what `tensors` and the `merged` matrices (out, in), by names of A, compute together.

    Its rank is that of the sum B A + matrix, the same for all layers, at most that of the smallest layer.
    """
    if not merged:
        return tensors
    sums: dict[str, torch.Tensor] = {}
    for name, matrix in merged.items():
        path = name.rpartition(".")[0]
        whole = tensors[f"{name.removesuffix('_A')}_B"].double() @ tensors[name].double() + matrix.double()
        sums[path] = sums[path] + whole if path in sums else whole
    parts = {path: torch.linalg.svd(matrix, full_matrices=False) for path, matrix in sums.items()}
    ranks = [int((values > NEGLIGIBLE * values.max()).sum()) for _, values, _ in parts.values()]
    rank = max(1, min(max(ranks), *(min(matrix.shape) for matrix in sums.values())))
    result: dict[str, torch.Tensor] = {}
    for path, (left, values, right) in parts.items():
        roots = values[:rank].sqrt()
        result[f"{path}{SHARED}A"] = (roots[:, None] * right[:rank]).float().contiguous()
        result[f"{path}{SHARED}B"] = (left[:, :rank] * roots).float().contiguous()
    return result


def read(folder: Path) -> Stored:
    """Read the adapter that `save` wrote to `folder`. Raises UserError when there is no readable adapter."""
    file = next((folder / file for file in (PEFT_FILE, PLAIN_FILE) if (folder / file).is_file()), None)
    if file is None:
        cure = "only a run that finished has one: go on with it by its command with --resume"
        raise UserError(f"{folder}: holds no adapter ({PEFT_FILE} or {PLAIN_FILE}); {cure}")
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
        with safe_open(file, "pt") as opened:
            classes = json.loads((opened.metadata() or {}).get("classes", "[]"))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as safetensors: {error}") from None
    if file.name == PLAIN_FILE:
        return Stored(file, tensors, None, classes)
    try:
        config = json.loads((folder / PEFT_CONFIG_FILE).read_text())
        alpha = config["lora_alpha"] / config["r"]  # PEFT's alpha is the paper's alpha times the rank
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{folder}: has no readable {PEFT_CONFIG_FILE} beside {file.name}; put back what the run wrote") from None
    return Stored(
        file, {name.removeprefix(PEFT_PREFIX).removesuffix(".weight"): tensor for name, tensor in tensors.items()}, alpha, classes
    )


def merged_shapes(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """The shapes of an adapter that holds merged weights, whose rank is not the method's; None for another one."""
    if not (folder / MERGED_FILE).is_file():
        return None
    return {name: tuple(tensor.shape) for name, tensor in read(folder).tensors.items()}


def is_former(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether low-rank updates have open_clip's layer names, as earlier versions wrote them, instead of an unfused model's."""
    return any(re.search(r"\.(out_proj|c_fc|c_proj)\.lora_|text_projection\.lora_", name) for name in tensors)


def load(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], name: str, alpha: float | None, classes: Sequence[str] = ()
) -> dict[str, torch.Tensor]:
    """Read the adapter that `save` wrote, as float32, and check it against `shapes`, `alpha` and `classes`.

    Raises UserError when there is no adapter, or one of another model, method or classes; `name` is the expected model's name.
    """
    file, stored, stored_alpha, stored_classes = read(folder)
    empty = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    joined = {key: tuple(tensor.shape) for key, tensor in join(empty).items()}
    current = by_current_names(stored, joined)
    for key, shape in joined.items():
        if key not in current:
            raise UserError(
                f"{file}: has no {key}, so it does not belong to {name} and this method; give the model it was trained on"
            )
        if tuple(current[key].shape) != shape:
            sizes = " x ".join(map(str, current[key].shape)), " x ".join(map(str, shape))
            raise UserError(
                f"{file}: {key} is {sizes[0]} but should be {sizes[1]}: it belongs to another model, method or set of classes; "
                "give the settings it was trained with"
            )
    if surplus := sorted(set(current) - set(joined)):
        raise UserError(
            f"{file}: has {surplus[0]}, which {name} with this method lacks: it belongs to another model or method; "
            "give the settings it was trained with"
        )
    if stored_alpha != alpha:
        raise UserError(f"{file}: was trained with alpha {stored_alpha:g}, not {alpha:g}; leave method.alpha as it was")
    if list(classes) != stored_classes:
        raise UserError(
            f"{file}: tells the classes {_listed(stored_classes)} apart, not {_listed(classes)}; give data with its own classes"
        )
    return separate(current, shapes)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
