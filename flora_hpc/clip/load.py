"""Load an open_clip model: frozen, in evaluation mode, unfused (see `attention.unfuse`)."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch.overrides import TorchFunctionMode

from flora_hpc import extras
from flora_hpc.clip import library, weights
from flora_hpc.clip.attention import unfuse
from flora_hpc.clip.fill import check_values, fill
from flora_hpc.clip.steady import steady
from flora_hpc.config import ModelConfig
from flora_hpc.errors import UserError

DRAWS = {"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_"}


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP with its preprocessing, tokenizer and name."""

    model: Any  # an open_clip model, unfused
    preprocess: Callable[[Any], torch.Tensor]  # PIL image -> (3, height, width) float32
    tokenize: Callable[[list[str]], torch.Tensor]  # captions -> (num_captions, context_length) int64
    name: str

    def copy(self) -> "Clip":
        """Copy the modules, but share their tensors: a change to the modules of the copy does not reach this model."""
        tensors = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        return replace(self, model=copy.deepcopy(self.model, tensors))


def load(config: ModelConfig, seed: int, device: torch.device) -> Clip:
    """Build the model that `config` names on `device`. On device 'meta' its tensors have shapes but no values.

    Raises UserError for a name, tag or file that does not exist or does not fit.
    """
    model, tokenize = load_open_clip(config, seed, device)
    preprocess = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    return Clip(steady(unfuse(model)).to(device), preprocess, tokenize, config.name)


def load_open_clip(config: ModelConfig, seed: int, device: torch.device) -> tuple[Any, Any]:
    """Build open_clip's own model, frozen and in evaluation mode but not unfused, and its tokenizer; not moved to `device`."""
    source = weights.find(config)
    text = source.model_cfg.get("text_cfg", {})
    if text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        extras.need(f"model.name: {config.name}", "transformers")
    try:
        with _quiet():
            model, tokenize = _build_with_tokenizer(source, seed, device)
    except UserError:
        raise
    except Exception as error:  # open_clip, timm and transformers raise any exception for broken or unreachable parts
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(f"model: {config.name} cannot be built here: {reason}") from None
    return model.eval().requires_grad_(False), tokenize


def _build_with_tokenizer(source: weights.Source, seed: int, device: torch.device) -> tuple[Any, Any]:
    """Build the model with its weights, and its tokenizer. If open_clip fails, import timm and transformers and try again."""
    try:
        if device.type == "meta":
            model = _build(source, "meta")
            if source.file is not None:  # names and shapes must fit on 'meta', too; the weights of a tag are not fetched
                fill(model, weights.read(source.file, "meta"), str(source.file))
        elif source.random:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = _build(source, "cpu")
        else:
            model = _with_weights(source)
        return model, _tokenizer(source)
    except UserError:
        raise
    except Exception:
        if not library.import_deferred():
            raise
    return _build_with_tokenizer(source, seed, device)


def _build(source: weights.Source, device: str) -> Any:
    """Build the architecture with random values, or without values on device 'meta'."""
    with torch.device(device):
        return open_clip.create_model(
            source.name,
            load_weights=False,
            pretrained_text=False,
            force_quick_gelu=bool(source.tag_cfg.get("quick_gelu")),
            force_preprocess_cfg=source.preprocess,
            device=device,
            **source.sizes,
        )


def _tokenizer(source: weights.Source) -> Any:
    """The model's tokenizer; for a CLIPModel, CLIP's own."""
    return open_clip.get_tokenizer(source.name, context_length=source.sizes.get("text_cfg", {}).get("context_length"))


class NoRandomInit(TorchFunctionMode):
    """Inside, no random initial values are drawn and their memory stays untouched: drawing takes seconds, for values not used."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **kwargs)


def _with_weights(source: weights.Source) -> Any:
    """Build the architecture and fill in the tensors of its file."""
    file = weights.fetch(source)
    assert file is not None
    state = weights.read(file)
    with NoRandomInit():  # not on 'meta', where PyTorch loads its compiler
        model = _build(source, "cpu")
    fill(model, state, str(file))
    check_values(state, str(file))
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, logging is off: open_clip logs a lot, and its errors come as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(level)
