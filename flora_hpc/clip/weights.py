"""Find a model's weights: an open_clip tag, a file, or a folder of open_clip or transformers."""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg

from flora_hpc.clip import layout
from flora_hpc.clip.weightfile import INDEX
from flora_hpc.clip.weightfile import read as read
from flora_hpc.config import ModelConfig
from flora_hpc.errors import UserError, did_you_mean

BUNDLED = "flora-tiny"
CONFIG_FILE = "open_clip_config.json"  # beside the weights of an open_clip model directory, such as a snapshot of a hub
PART = re.compile(r"-\d+-of-\d+(?=\.)")  # in the name of one file of several
PLAIN = "ViT-B-32"  # an open_clip model of the class CLIP; a CLIPModel's sizes replace all of its sizes
OTHER_FOLDERS = {  # file in a folder -> what the folder is
    "adapter_config.json": "an adapter, not whole weights; merge it first (flora-hpc export, or peft's merge_and_unload)",
    "run.h5": "a run; export it (flora-hpc export RUN --to open_clip), and give the folder that this writes",
    "snapshots": "a cache of the hub; give the folder with the weights that is in its snapshots/",
}
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Source:
    """The source of a model's architecture and weights, in open_clip's terms."""

    name: str  # of the model for open_clip.create_model: a known name, or 'local-dir:...'
    tag: str = ""
    tag_cfg: Mapping[str, Any] = field(default_factory=dict)  # open_clip's entry for the tag: URL, QuickGELU, preprocessing
    file: Path | None = None
    sizes: Mapping[str, Any] = field(default_factory=dict)  # replace the sizes of `name`, for a CLIPModel of transformers

    @property
    def random(self) -> bool:
        """Whether there are no weights to load."""
        return self.file is None and not self.tag

    @property
    def preprocess(self) -> dict[str, Any]:
        """The tag's settings of preprocessing. A directory has them in its own file, which open_clip reads."""
        return {key: value for key, value in self.tag_cfg.items() if key in PreprocessCfg.__dataclass_fields__}

    @property
    def model_cfg(self) -> dict[str, Any]:
        """The architecture as open_clip's configuration."""
        activation = {"quick_gelu": True} if self.tag_cfg.get("quick_gelu") else {}
        return dict(open_clip.get_model_config(self.name)) | activation | dict(self.sizes)


def find(config: ModelConfig) -> Source:
    """Find the source that `config` names; nothing is fetched. Raises UserError for a name, tag or file that does not exist."""
    if config.name == BUNDLED:
        if config.pretrained is not None:
            raise UserError(f"model.pretrained: {BUNDLED} brings its weights; leave model.pretrained out")
        return _directory(Path(str(files("flora_hpc.clip.flora_tiny"))), None)
    names = [*open_clip.list_models(), BUNDLED]
    tags = open_clip.list_pretrained_tags_by_model(config.name)
    if config.pretrained is not None and config.pretrained in tags:
        return Source(config.name, config.pretrained, open_clip.get_pretrained_cfg(config.name, config.pretrained))
    known_name = config.name if config.name in names else None
    path = Path(config.pretrained).expanduser() if config.pretrained not in (None, "none") else None
    is_file = path is not None and os.path.isfile(path)  # noqa: PTH113 -- pathlib raises for names that are too long
    if path is not None and os.path.isdir(path):  # noqa: PTH112
        return _directory(path, known_name)
    if path is not None and is_file:
        path = _index_or_file(path)
        if (path.parent / CONFIG_FILE).is_file():
            return _open_clip(path.parent, known_name, path)
        if (config_beside := _config_beside(path)) is not None:
            return _transformers(path.parent, config_beside, known_name, path)
    if known_name is None:
        raise UserError(
            f"model.name: no model '{config.name}'{did_you_mean(config.name, names)} "
            f"(choose {BUNDLED} or a name of open_clip.list_models(); a name of your own goes with an open_clip directory)"
        )
    if config.pretrained == "none":
        return Source(config.name)
    if config.pretrained is None or path is None:
        raise UserError(
            f"model.pretrained: {config.name} needs weights: an open_clip tag ({', '.join(tags) or 'it has none'}), "
            "a weights file or open_clip directory, or 'none' for random ones"
        )
    if not is_file:
        raise UserError(
            f"model.pretrained: '{config.pretrained}' is neither a file, a directory, nor a tag of {config.name}"
            f"{did_you_mean(config.pretrained, tags)} ({', '.join(tags) or 'it has no tags'})"
        )
    return Source(config.name, file=path)


def _index_or_file(file: Path) -> Path:
    """The index of a checkpoint in several files, where `file` is one of them; else `file` itself."""
    index = file.with_name(PART.sub("", file.name) + INDEX)
    return index if PART.search(file.name) and index.is_file() else file


def _config_beside(file: Path) -> dict[str, Any] | None:
    """Read the configuration of a CLIPModel in the folder of its weights file; None where the folder has none."""
    config = None
    with suppress(UserError):  # a config.json of another program
        config = layout.read_config(file.parent)
    return config if config is not None and config.get("model_type") == "clip" else None


def _directory(folder: Path, name: str | None) -> Source:
    """The source in a model directory of open_clip or transformers. `name` is the expected architecture, if it is a known one."""
    if not (folder / CONFIG_FILE).is_file():
        for mark, what in OTHER_FOLDERS.items():
            if (folder / mark).exists():
                raise UserError(f"model.pretrained: {folder} is {what}")
        if (config := layout.read_config(folder)) is not None:
            return _transformers(folder, config, name)
    return _open_clip(folder, name)


def _transformers(folder: Path, config: dict[str, Any], name: str | None, file: Path | None = None) -> Source:
    """The source of a CLIPModel that transformers saved in `folder`; `file` is one weights file in it."""
    sizes = layout.architecture(folder, config)
    if name:
        expected = open_clip.get_model_config(name)
        kinds = {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg, "embed_dim": int}
        for part, kind in kinds.items():
            if _tower(expected[part], kind) != _tower(sizes[part], kind):
                raise UserError(
                    f"model.pretrained: {folder} holds another architecture than {name}: its {part} is {sizes[part]}, "
                    f"not {expected[part]}; set model.name to the right one, or to a name of your own"
                )
    preprocessing = layout.preprocessing(folder, sizes["vision_cfg"]["image_size"])
    if file is None:
        present = [folder / file for file in layout.FILES if (folder / file).is_file()]
        if not present:
            raise UserError(
                f"model.pretrained: {folder} holds none of {', '.join(layout.FILES)}; save the CLIPModel with PyTorch's weights "
                "by save_pretrained, or give the weights file itself"
            )
        file = present[0]
    return Source(PLAIN, tag_cfg=preprocessing, file=file, sizes=sizes)


def _tower(sizes: Any, kind: type) -> Any:
    """A tower's sizes as an open_clip `kind`, with the width of its MLPs as ratio: written ratios are rounded."""
    if kind is int:
        return sizes
    cfg = kind(**sizes)
    return replace(cfg, mlp_ratio=int(cfg.width * cfg.mlp_ratio))


def _open_clip(folder: Path, name: str | None, file: Path | None = None) -> Source:
    """The source in an open_clip model directory; `file` is one weights file in it."""
    try:
        text = (folder / CONFIG_FILE).read_text()
        config = json.loads(text)["model_cfg"]
        parts = config["embed_dim"], dict(config["vision_cfg"]), dict(config["text_cfg"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        cure = "give the weights file itself, or a folder with the config.json of transformers' CLIPModel"
        raise UserError(
            f"model.pretrained: {folder} has no {CONFIG_FILE} with a model_cfg of embed_dim, vision_cfg and text_cfg; "
            f"mend it, or {cure if file is None else 'give the weights file from a folder without it'}"
        ) from None
    if "trust_remote_code" in text:
        raise UserError(
            f"model.pretrained: {folder / CONFIG_FILE} asks for trust_remote_code; code of a checkpoint is never run: take it out"
        )
    expected = open_clip.get_model_config(name) if name else None
    for part, value in zip(("embed_dim", "vision_cfg", "text_cfg"), parts, strict=True):
        if expected and expected[part] != value:
            raise UserError(
                f"model.pretrained: {folder} holds another architecture than {name}: its {part} is {value}, "
                f"not {expected[part]}; set model.name to the right one, or to a name of your own"
            )
    return Source(f"local-dir:{folder}", file=file or _only_weights(folder))


def _only_weights(folder: Path) -> Path:
    """The weights file of an open_clip model directory. Raises UserError unless there is exactly one."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    paths = [path for path in paths if path.stem.startswith("open_clip")] or paths
    paths = [path for path in paths if path.suffix == ".safetensors"] or paths
    if len(paths) != 1:
        names = ", ".join(path.name for path in paths) or f"none ({', '.join(SUFFIXES)})"
        raise UserError(f"model.pretrained: {folder} must hold one weights file beside its {CONFIG_FILE}, but holds {names}")
    return paths[0]


def what_is_checked(source: Source) -> str:
    """One sentence on what a plan, which builds the model without values, checks of its weights."""
    if source.tag:
        return f"'{source.tag}' of open_clip: not looked at; a run fetches it, where it is not in the cache"
    if source.file is None:
        return "random, from the seed"
    return f"{source.file}: names and shapes fit the model; values (NaN, zeros) are not looked at before a run"


def fetch(source: Source) -> Path | None:
    """Return the weights file, after downloading it into the hub's cache if it is missing there; None for random weights."""
    if not source.tag:
        return source.file
    try:
        return Path(open_clip.download_pretrained(dict(source.tag_cfg)))
    except Exception as error:  # the hub's client raises any exception of its transport
        raise UserError(
            f"model.pretrained: '{source.tag}' of {source.name} is not in the cache and cannot be fetched "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); where there is a network, run "
            f"python -c \"import open_clip; open_clip.create_model('{source.name}', '{source.tag}')\" with this HF_HOME"
        ) from None
