"""Each test has an interpreter of its own, or a fork of one that lacks the libraries: what is imported cannot be put off."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import BertConfig, PreTrainedTokenizerFast

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VIT = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
TIMM = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear", "image_size": 160}
LOAD = """
import sys, torch
assert "timm" not in sys.modules and "transformers" not in sys.modules
from flora_hpc.clip.load import load
from flora_hpc.config import ModelConfig
model = load(ModelConfig(name="mine", pretrained=sys.argv[1]), 0, torch.device("cpu")).model
print(*model.encode_image(torch.ones(1, 3, *model.visual.image_size)).tolist()[0])
"""
SMALL_TASK = """
import sys
from flora_hpc.bench.methods import Task, measure
measure(Task("flora", "flora-tiny", classes=3, batch_size=2, clients=2, steps=1, repeats=1, device="cpu"))
print(*(name for name in ("timm", "transformers", "torch._dynamo", "triton", "open_clip", "torchvision") if name in sys.modules))
"""
ASK_LATER = """
import torch
from flora_hpc.clip import library
from torchvision.ops import roi_align
import sys
module = sys.modules["torchvision.ops.roi_align"]
assert "torch._dynamo" not in sys.modules
answer = module.is_compile_supported("cpu")
import torch._dynamo.utils
assert answer == torch._dynamo.utils.is_compile_supported("cpu")
with library.deferred_imports():
    from torch._dynamo.utils import is_compile_supported
assert is_compile_supported is torch._dynamo.utils.is_compile_supported
print("asked")
"""
ALL_OF_TORCHVISION = """
import sys
from flora_hpc.clip import library
from torchvision import datasets, models
print(any(name in sys.modules for name in ("torchvision.models", "torchvision.datasets")))
assert models.resnet18().fc.out_features == 1000
assert datasets.CIFAR10 is sys.modules["torchvision.datasets.cifar"].CIFAR10
import torchvision
assert torchvision.models is sys.modules["torchvision.models"] and torchvision.datasets is sys.modules["torchvision.datasets"]
from torchvision.models.resnet import resnet18
assert torchvision.models.resnet18 is resnet18
"""
OTHER_NAMES = """
import sys, torch
from flora_hpc.clip import library
assert "torch._dynamo" not in sys.modules
with library.deferred_imports():
    from torch._dynamo.utils import counters
import torch._dynamo.utils
assert counters is torch._dynamo.utils.counters
print("found")
"""


def said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def fork(python: list[str], tmp_path: Path) -> Callable[..., str]:
    """Run a script with arguments in a process that has imported flora_hpc: what it printed."""

    def call(script: str, *arguments: object) -> str:
        file = tmp_path / "script.py"
        file.write_text(script)
        return said([*python, str(file), *map(str, arguments)])

    return call


def model_directory(folder: Path, config: dict[str, object], kind: type[torch.nn.Module]) -> torch.nn.Module:
    torch.manual_seed(0)
    model = kind(**json.loads(json.dumps(config)))
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return model.eval()


def test_training_a_clip_of_open_clips_own_loads_neither_timm_nor_transformers_nor_the_compiler() -> None:
    assert said([sys.executable, "-c", SMALL_TASK]) == "open_clip torchvision"


def test_what_was_put_off_is_there_when_it_is_asked_for(fork: Callable[..., str]) -> None:
    assert fork(ASK_LATER) == "asked"


@pytest.mark.long
def test_models_and_data_sets_of_torchvision_are_loaded_when_they_are_asked_for() -> None:
    assert said([sys.executable, "-c", ALL_OF_TORCHVISION]) == "False"


@pytest.mark.long
def test_other_names_of_the_compiler_are_its_own_at_once(fork: Callable[..., str]) -> None:
    assert fork(OTHER_NAMES) == "found"


@pytest.mark.long
def test_an_image_tower_of_timms_is_built_with_timm(fork: Callable[..., str], tmp_path: Path) -> None:
    model = model_directory(tmp_path, {"embed_dim": 8, "vision_cfg": TIMM, "text_cfg": TEXT}, open_clip.CLIP)
    right = model.encode_image(torch.ones(1, 3, 160, 160))[0]  # type: ignore[operator]
    features = torch.tensor([float(number) for number in fork(LOAD, tmp_path).split()])
    torch.testing.assert_close(features, right.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_a_text_tower_of_transformers_is_built_with_transformers(fork: Callable[..., str], tmp_path: Path) -> None:
    tower = tmp_path / "tower"
    sizes = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertConfig(**sizes).save_pretrained(tower)  # type: ignore[arg-type]
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "photo": 3}, "[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        tmp_path
    )  # beside the weights
    text = {"hf_model_name": str(tower), "hf_tokenizer_name": str(tower), "hf_model_pretrained": False, "hf_proj_type": "linear"}
    text |= {"hf_pooler_type": "mean_pooler"}
    model = model_directory(tmp_path, {"embed_dim": 8, "vision_cfg": VIT, "text_cfg": text}, open_clip.CustomTextCLIP)
    right = model.encode_image(torch.ones(1, 3, 16, 16))[0]  # type: ignore[operator]
    features = torch.tensor([float(number) for number in fork(LOAD, tmp_path).split()])
    torch.testing.assert_close(features, right.detach(), rtol=1e-4, atol=1e-5)
