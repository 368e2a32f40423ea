"""Find a model's weights, and put them into it without copying: ranks of one node share the pages of the file they map."""

import json
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from open_clip.transform import PreprocessCfg
from safetensors import SafetensorError, safe_open

from flora_hpc.config import ModelConfig
from flora_hpc.errors import UserError, did_you_mean

BUNDLED = "flora-tiny"
CONFIG_FILE = "open_clip_config.json"  # beside the weights of an open_clip model directory, such as a snapshot of a hub
POSITIONS = {
    "visual.positional_embedding": resize_pos_embed,
    "positional_embedding": resize_text_pos_embed,
    "text.positional_embedding": resize_text_pos_embed,
}
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # what DistributedDataParallel and torch.compile put before names
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Source:
    """Where a model comes from, in open_clip's terms."""

    name: str  # what open_clip.create_model builds: a known name, or 'local-dir:...'
    tag: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)  # of the tag, as open_clip knows it: place, QuickGELU, preprocessing
    file: Path | None = None

    @property
    def random(self) -> bool:
        """Whether there are no weights to load."""
        return self.file is None and not self.tag

    @property
    def preprocess(self) -> dict[str, Any]:
        """What the tag says of preprocessing; a directory says it in its own file, which open_clip reads."""
        return {key: value for key, value in self.facts.items() if key in PreprocessCfg.__dataclass_fields__}


def find(config: ModelConfig) -> Source:
    """Work out what `config` names; nothing is fetched. Raises UserError for what does not exist."""
    if config.name == BUNDLED:
        if config.pretrained is not None:
            raise UserError(f"model.pretrained: {BUNDLED} brings its weights; leave model.pretrained away")
        return _directory(Path(str(files("flora_hpc.clip.flora_tiny"))), None)
    names = [*open_clip.list_models(), BUNDLED]
    tags = open_clip.list_pretrained_tags_by_model(config.name)
    if config.pretrained is not None and config.pretrained in tags:
        return Source(config.name, config.pretrained, open_clip.get_pretrained_cfg(config.name, config.pretrained))
    given = Path(config.pretrained).expanduser() if config.pretrained not in (None, "none") else None
    if given is not None and given.is_dir():
        return _directory(given, config.name if config.name in names else None)
    if config.name not in names:
        raise UserError(
            f"model.name: no model '{config.name}'{did_you_mean(config.name, names)} "
            f"(choose {BUNDLED} or a name of open_clip.list_models(); a name of your own goes with an open_clip directory)"
        )
    if config.pretrained == "none":
        return Source(config.name)
    if config.pretrained is None or given is None:
        raise UserError(
            f"model.pretrained: {config.name} needs weights: an open_clip tag ({', '.join(tags) or 'it has none'}), "
            "a weights file or open_clip directory, or 'none' for random ones"
        )
    if not given.is_file():
        raise UserError(
            f"model.pretrained: '{config.pretrained}' is neither a file, a directory, nor a tag of {config.name}"
            f"{did_you_mean(config.pretrained, tags)} ({', '.join(tags) or 'it has no tags'})"
        )
    return Source(config.name, file=given)


def _directory(folder: Path, name: str | None) -> Source:
    """An open_clip model directory. `name` is the architecture that the user expects there, if it is a known one."""
    try:
        text = (folder / CONFIG_FILE).read_text()
        config = json.loads(text)["model_cfg"]
        parts = config["embed_dim"], dict(config["vision_cfg"]), dict(config["text_cfg"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"model.pretrained: {folder} has no {CONFIG_FILE} with a model_cfg of embed_dim, vision_cfg and text_cfg; "
            "mend it, or give the weights file itself"
        ) from None
    if "trust_remote_code" in text:
        raise UserError(
            f"model.pretrained: {folder / CONFIG_FILE} asks for trust_remote_code; code of a checkpoint is never run: take it out"
        )
    wanted = open_clip.get_model_config(name) if name else None
    for part, value in zip(("embed_dim", "vision_cfg", "text_cfg"), parts, strict=True):
        if wanted and wanted[part] != value:
            raise UserError(
                f"model.pretrained: {folder} holds another architecture than {name}: its {part} is {value}, "
                f"not {wanted[part]}; set model.name to the right one, or to a name of your own"
            )
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    found = [path for path in found if path.stem.startswith("open_clip")] or found
    found = [path for path in found if path.suffix == ".safetensors"] or found
    if len(found) != 1:
        held = ", ".join(path.name for path in found) or f"none ({', '.join(SUFFIXES)})"
        raise UserError(f"model.pretrained: {folder} must hold one weights file beside its {CONFIG_FILE}, but holds {held}")
    return Source(f"local-dir:{folder}", file=found[0])


def fetch(source: Source) -> Path | None:
    """The weights file, downloaded into the cache of the hub if it is not there yet; None for random weights."""
    if not source.tag:
        return source.file
    try:
        return Path(open_clip.download_pretrained(dict(source.facts)))
    except Exception as error:  # the hub's client raises whatever its transport does
        raise UserError(
            f"model.pretrained: '{source.tag}' of {source.name} is not in the cache and cannot be fetched "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); where there is a network, run "
            f"python -c \"import open_clip; open_clip.create_model('{source.name}', '{source.tag}')\" with this HF_HOME"
        ) from None


def read(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, mapped from the file where its format allows it. Pickled code is never run.

    Raises UserError for what is not a checkpoint.
    """
    try:
        if file.suffix == ".safetensors":
            return _map(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on a pickle that it then refuses
            zipped = zipfile.is_zipfile(file)  # torch's old format is none, and cannot be mapped
            checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except (RuntimeError, OSError, ValueError, EOFError, UnpicklingError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        if "weights_only" in reason or "TorchScript" in reason:
            reason = "it holds pickled code, which is never run; save its state dict alone, best as .safetensors"
        raise UserError(f"model.pretrained: {file} does not load: {reason}") from None
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    named = state.items() if isinstance(state, dict) else ()
    tensors = {WRAPPERS.sub("", str(name)): value for name, value in named if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(f"model.pretrained: {file} holds no tensors by name; save a model's state dict")
    return tensors


def _map(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, in one mapping for each tower.

    A mapping lasts as long as any of its tensors. A run that drops the image tower then holds no pages of it any more.
    """
    tensors: dict[str, torch.Tensor] = {}
    for visual in (True, False):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys() if name.startswith("visual.") == visual}  # noqa: SIM118
    return tensors


def fill(model: Any, state: dict[str, torch.Tensor], where: str) -> None:
    """Give `model`, which may be on device 'meta', these weights themselves (not copies), as float32.

    Raises UserError that says which tensors are missing, surplus or of another shape; `where` names the file.
    """
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    state = convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    state.pop("text.transformer.embeddings.position_ids", None)  # of old transformers
    wanted = model.state_dict()
    for name in ("logit_scale", "logit_bias"):
        if name in state and name in wanted and state[name].numel() == wanted[name].numel():
            state[name] = state[name].reshape(wanted[name].shape)
    if "logit_bias" in wanted and "logit_bias" not in state and "logit_scale" in state:
        state["logit_bias"] = torch.zeros_like(state["logit_scale"])
    for name, resize in POSITIONS.items():  # of another image size or context length: open_clip interpolates
        if name in state and name in wanted and _can_be_resized(state[name], wanted[name]):
            with suppress(RuntimeError, IndexError):  # no square grid: told as another shape below
                resize(state, model)
    problems = [
        _some("missing", [name for name in wanted if name not in state]),
        _some("surplus", [name for name in state if name not in wanted]),
        _some(
            "of another shape",
            [
                f"{name} ({_size(state[name])} in the file, {_size(wanted[name])} in the model)"
                for name in wanted
                if name in state and state[name].shape != wanted[name].shape
            ],
        ),
    ]
    if any(problems):
        raise UserError(f"model.pretrained: {where} does not fit the model: {'; '.join(filter(None, problems))}")
    model.load_state_dict(state, assign=True)


def _can_be_resized(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether position embeddings (length, width) are of one width and differ in length."""
    return found.ndim == wanted.ndim == 2 and found.shape[1] == wanted.shape[1] and len(found) != len(wanted)


def _some(what: str, names: Iterable[str]) -> str:
    """'3 tensors missing (a, b, c)'; long lists are cut."""
    names = list(names)
    listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{len(names)} tensor{'s' * (len(names) != 1)} {what} ({listed})" if names else ""


def _size(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"
