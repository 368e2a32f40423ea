"""A CLIPModel of transformers gives the numbers that transformers computes with it."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from flora_hpc.clip import layout, weights
from flora_hpc.clip.load import load
from flora_hpc.config import ModelConfig
from flora_hpc.errors import UserError

CPU = torch.device("cpu")
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 16,
    "patch_size": 8,
}


def clip_model(act: str = "quick_gelu", **text: Any) -> CLIPModel:
    torch.manual_seed(0)
    configs = {"text_config": TEXT | {"hidden_act": act} | text, "vision_config": VISION | {"hidden_act": act}}
    model = CLIPModel(CLIPConfig(**configs, projection_dim=24)).eval()
    for parameter in model.parameters():
        if parameter.ndim:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[CLIPModel, Path]:
    """A CLIPModel, and the folder that it was saved in."""
    model, folder = clip_model(), tmp_path_factory.mktemp("whole")
    model.save_pretrained(folder)
    return model, folder


def assert_same_numbers(original: CLIPModel, pretrained: Path, name: str = "mine") -> None:
    clip = load(ModelConfig(name=name, pretrained=str(pretrained)), 0, CPU)
    load(ModelConfig(name=name, pretrained=str(pretrained)), 0, torch.device("meta"))
    tokens, pixels = clip.tokenize(["a photo of a cat", "two dogs and a house"]), torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        image, text = original.get_image_features(pixels), original.get_text_features(tokens)
        image, text = (getattr(output, "pooler_output", output) for output in (image, text))  # a tensor before version 5
        torch.testing.assert_close(clip.model.encode_image(pixels), image, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(clip.model.encode_text(tokens), text, rtol=1e-5, atol=1e-5)
    assert clip.model.logit_scale.equal(original.logit_scale)


def test_a_folder_and_a_file_in_it(whole: tuple[CLIPModel, Path]) -> None:
    original, folder = whole
    assert_same_numbers(original, folder)
    assert_same_numbers(original, folder / "model.safetensors")


def test_several_files_and_the_plain_gelu_of_an_old_configuration(tmp_path: Path) -> None:
    original = clip_model("gelu", eos_token_id=2)
    original.save_pretrained(tmp_path, max_shard_size="2MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_numbers(original, tmp_path)
    assert_same_numbers(original, min(tmp_path.glob("*.safetensors")))


def test_pytorchs_file_with_the_buffers_of_old_versions_in_half_precision(whole: tuple[CLIPModel, Path], tmp_path: Path) -> None:
    original = clip_model().half()
    state = original.state_dict() | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((whole[1] / "config.json").read_text())
    assert_same_numbers(original.float(), tmp_path)


def test_names_there_and_back(whole: tuple[CLIPModel, Path]) -> None:
    state = load_file(whole[1] / "model.safetensors")
    back = layout.to_transformers(layout.to_open_clip(state, "w"))
    assert set(back) == set(state)
    assert all(back[name].equal(tensor) for name, tensor in state.items())


def test_preprocessing_is_the_folders(whole: tuple[CLIPModel, Path], tmp_path: Path) -> None:
    _, folder = whole
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    sizes = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPImageProcessor(image_mean=[0.0] * 3, image_std=[0.5] * 3, resample=2, **sizes).save_pretrained(tmp_path)
    source = weights.find(ModelConfig(name="mine", pretrained=str(tmp_path)))
    assert source.preprocess == {"mean": (0, 0, 0), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear", "resize_mode": "shortest"}
    CLIPImageProcessor(do_center_crop=False, size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    assert weights.find(ModelConfig(name="mine", pretrained=str(tmp_path))).preprocess["resize_mode"] == "squash"
    for changes in ({"do_normalize": False}, {"do_center_crop": False}, {"crop_size": 24}, {"rescale_factor": 1 / 127.5}):
        CLIPImageProcessor(**(sizes | changes)).save_pretrained(tmp_path)
        with pytest.raises(UserError, match=r"preprocessor_config.json prepares images otherwise than CLIP does"):
            weights.find(ModelConfig(name="mine", pretrained=str(tmp_path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="siglip"), r"describes a model of type 'siglip', not transformers' CLIPModel"),
        (lambda c: c.update(model_type="clip_vision_model"), r"describes one tower alone .clip_vision_model."),
        (lambda c: c.pop("model_type"), r"describes a model of type None"),
        (lambda c: c["text_config"].update(hidden_act="gelu"), r"hidden_act is gelu in the text tower and quick_gelu in the image"),
        (lambda c: c["vision_config"].update(layer_norm_eps=1e-6), r"its layer_norm_eps is 1e-05 and 1e-06"),
        (lambda c: c["text_config"].update(vocab_size=1000), r"its vocabulary has 1,000 tokens and CLIP's tokenizer 49,408"),
        (lambda c: c["text_config"].update(eos_token_id=7), r"its eos_token_id is 7, not 49407"),
        (lambda c: c["vision_config"].update(num_channels=1), r"its images have 1 channels"),
        (lambda c: c["text_config"].update(hidden_size="wide"), r"config.json is not a CLIPModel's: .*put back"),
    ],
)
def test_models_that_open_clip_cannot_be_are_refused(
    whole: tuple[CLIPModel, Path], change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    config = json.loads((whole[1] / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(whole[1] / "model.safetensors")
    for device in ("cpu", "meta"):
        with pytest.raises(UserError, match=message):
            load(ModelConfig(name="mine", pretrained=str(tmp_path)), 0, torch.device(device))


def test_a_known_name_must_be_the_folders_architecture(whole: tuple[CLIPModel, Path]) -> None:
    with pytest.raises(UserError, match="holds another architecture than ViT-B-32: its vision_cfg is"):
        weights.find(ModelConfig(name="ViT-B-32", pretrained=str(whole[1])))


def test_weights_that_are_not_those_of_the_configuration(whole: tuple[CLIPModel, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((whole[1] / "config.json").read_text())
    with pytest.raises(UserError, match=r"holds none of model.safetensors, .*; save the CLIPModel with PyTorch's weights"):
        weights.find(ModelConfig(name="mine", pretrained=str(tmp_path)))
    state = load_file(whole[1] / "model.safetensors")
    cases = {
        "holds the image tower of a CLIPModel alone": {n: t for n, t in state.items() if n.startswith("vision")},
        "1 tensor missing .ln_final.bias.": {n: t for n, t in state.items() if n != "text_model.final_layer_norm.bias"},
        "1 tensor of another shape .*visual.proj": state | {"visual_projection.weight": torch.ones(24, 40)},
        "surplus .*transformer.resblocks.0.self_attn.k_proj": {
            n: t for n, t in state.items() if not n.endswith("0.self_attn.q_proj.bias")
        },
        "is a SigLIP of transformers": state | {"vision_model.head.probe": torch.ones(1, 1, 48)},
    }
    for message, tensors in cases.items():
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=message):
            load(ModelConfig(name="mine", pretrained=str(tmp_path)), 0, torch.device("meta"))


@pytest.mark.parametrize("mark", ["adapter_config.json", "run.h5", "snapshots"])
def test_folders_of_another_kind_are_told_apart(mark: str, tmp_path: Path) -> None:
    (tmp_path / mark).touch()
    message = {
        "adapter_config.json": "an adapter, not whole weights; merge it",
        "run.h5": "a run; export it",
        "snapshots": "a cache",
    }
    with pytest.raises(UserError, match=message[mark]):
        weights.find(ModelConfig(name="mine", pretrained=str(tmp_path)))


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-g-14", "ViT-H-14", "ViT-bigG-14"])
def test_a_known_name_takes_the_folder_of_its_own_architecture(name: str, tmp_path: Path) -> None:
    """open_clip rounds the ratio of its MLPs' widths; transformers writes the widths themselves."""
    sizes = open_clip.get_model_config(name)
    vision, text = sizes["vision_cfg"], sizes["text_cfg"]
    towers = {
        "vision_config": {
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4.0)),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        "text_config": {
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "projection_dim": sizes["embed_dim"]} | towers))
    (tmp_path / "model.safetensors").touch()
    assert weights.find(ModelConfig(name=name, pretrained=str(tmp_path))).file == tmp_path / "model.safetensors"
    towers["vision_config"]["intermediate_size"] += 16
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "projection_dim": sizes["embed_dim"]} | towers))
    with pytest.raises(UserError, match=f"holds another architecture than {name}: its vision_cfg is"):
        weights.find(ModelConfig(name=name, pretrained=str(tmp_path)))


def test_the_width_of_an_mlp_survives_its_ratio() -> None:
    for width, inner in ((352, 480), (224, 976), (1664, 8192)):
        ratio = layout._mlp_ratio(SimpleNamespace(hidden_size=width, intermediate_size=inner))
        assert int(width * ratio) == inner


@pytest.mark.parametrize(
    "change",
    [
        '{"rescale_factor": null}',
        '{"rescale_factor": "1/255"}',
        '{"resample": []}',
        '{"image_mean": [0.5]}',
        '{"size": {}}',
        "[]",
        "[" * 100_000,
    ],
)
def test_preprocessing_of_a_wrong_form_is_refused(change: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(change)
    with pytest.raises(UserError, match=r"preprocessor_config.json is not a CLIP's preprocessing; put back the one it was saved"):
        layout.preprocessing(tmp_path, 224)


def test_a_configuration_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": ' + "[" * 100_000)
    with pytest.raises(UserError, match=r"config.json is not readable JSON .*; copy or download it again"):
        weights.find(ModelConfig(name="mine", pretrained=str(tmp_path)))
