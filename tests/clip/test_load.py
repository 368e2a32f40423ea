from importlib.resources import files
from pathlib import Path

import pytest
import torch

from flora_hpc.clip import weights
from flora_hpc.clip.load import load
from flora_hpc.config import ModelConfig
from flora_hpc.errors import UserError

CPU = torch.device("cpu")


def test_the_bundled_model_is_small_frozen_and_reads_its_own_captions() -> None:
    clip = load(ModelConfig(), 0, CPU)
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())
    assert not clip.model.training
    weights = files("flora_hpc.clip.flora_tiny") / "open_clip_model.safetensors"
    assert len(weights.read_bytes()) <= 20_000_000
    tokens = clip.tokenize(["a photo of the number three."])
    assert tokens.shape == (1, 77)
    assert tokens[0, 0] == 49406  # CLIP's own start and end tokens
    assert int(tokens.max()) == 49407


def test_random_weights_come_from_the_seed_and_leave_torchs_generator_alone() -> None:
    config = ModelConfig(name="RN50", pretrained="none")
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, same, other = (load(config, seed, CPU).model.token_embedding.weight for seed in (0, 0, 1))
    assert first.equal(same)
    assert not first.equal(other)
    assert torch.random.get_rng_state().equal(before)


def test_on_device_meta_there_are_shapes_but_no_values() -> None:
    model = load(ModelConfig(name="ViT-B-32", pretrained="none"), 0, torch.device("meta")).model
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.token_embedding.weight.shape == (49408, 512)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "vit-b32"}, "no model 'vit-b32'; did you mean 'ViT-B-32'?"),
        (
            {"name": "ViT-B-32"},
            "needs weights: an open_clip tag .*laion2b_s34b_b79k.*, a weights file or open_clip directory, or 'none'",
        ),
        ({"name": "ViT-B-32", "pretrained": "laion2b"}, "neither a file, a directory, nor a tag of ViT-B-32; did you mean"),
        ({"pretrained": "openai"}, "flora-tiny brings its weights; leave model.pretrained out"),
    ],
)
def test_a_wrong_name_or_tag_is_answered_with_the_right_ones(config: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        load(ModelConfig(**config), 0, CPU)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"not weights")
    with pytest.raises(UserError, match="does not load"):
        load(ModelConfig(name="ViT-B-32", pretrained=str(path)), 0, CPU)


def test_weights_trained_with_quick_gelu_get_it() -> None:
    """The tag decides: OpenAI's weights under the plain name ViT-B-32 were trained with QuickGELU, LAION's were not."""
    kinds = []
    for tag in ("openai", "laion2b_s34b_b79k"):
        model = load(ModelConfig(name="ViT-B-32", pretrained=tag), 0, torch.device("meta")).model
        kinds.append(type(model.transformer.resblocks[0].mlp.gelu).__name__)
    assert kinds == ["QuickGELU", "GELU"]


def test_a_model_without_its_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights in place of missing ones would be a silent disaster."""
    config = files("flora_hpc.clip.flora_tiny") / "open_clip_config.json"
    (tmp_path / "open_clip_config.json").write_text(config.read_text())
    monkeypatch.setattr(weights, "files", lambda package: tmp_path)
    with pytest.raises(UserError, match="must hold one weights file"):
        load(ModelConfig(), 0, CPU)
