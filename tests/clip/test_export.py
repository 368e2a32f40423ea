"""What was exported computes in other libraries what it computed here."""

import html
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import open_clip
import peft
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from flora_hpc.clip import adapters, export
from flora_hpc.clip.attention import unfuse
from flora_hpc.clip.load import Clip, load
from flora_hpc.config import ModelConfig
from flora_hpc.data.datasets import digits
from flora_hpc.data.decode import rgb
from flora_hpc.errors import UserError
from flora_hpc.methods._lora import find_layers
from tests.conftest import CONTEXT, END, VOCABULARY, WIDTH, small_model

EVERYWHERE = tuple(
    f"{tower}.{part}" for tower in ("text", "image") for part in ("q_proj", "k_proj", "v_proj", "out_proj", "mlp", "head")
)
ALPHA, RANK = 1.5, 3
TINY = f"local-dir:{files('flora_hpc.clip.flora_tiny')}"
Examples = tuple[torch.Tensor, torch.Tensor]


def adapters_on(model: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    """Low-rank updates of every kind of layer of a split model, large enough that each of them matters."""
    draw = torch.Generator().manual_seed(seed)
    updates: dict[str, torch.Tensor] = {}
    for path, layer in find_layers(model, EVERYWHERE, "the model").items():
        updates[f"{path}.lora_A"] = torch.randn(RANK, layer.in_features, generator=draw) * layer.in_features**-0.5
        updates[f"{path}.lora_B"] = torch.randn(layer.out_features, RANK, generator=draw) * 0.1
    return updates


def features(model: Any, examples: Examples) -> Examples:
    """Unit-length features of images and captions by open_clip's own code."""
    with torch.inference_mode():
        return model.encode_image(examples[0], normalize=True), model.encode_text(examples[1], normalize=True)


def assert_alike(actual: Examples, expected: Examples, base: Examples) -> None:
    """Both towers agree to rounding, and neither is what it was before training."""
    for one, other, untrained in zip(actual, expected, base, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        assert (one - untrained).abs().max() > 1e-2


# --- open_clip


@pytest.fixture(scope="module")
def tiny() -> Clip:
    return load(ModelConfig(), 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def real(tiny: Clip) -> Examples:
    """Some digits and their captions."""
    data = digits.build(digits.Options(name="digits"))
    images = [rgb(image) for image in data.images.raw(data.test[:20].tolist())]
    return torch.stack([tiny.preprocess(image) for image in images]), tiny.tokenize(list(data.captions))


def opened(folder: Path, clip: Clip, config: ModelConfig, tensors: dict[str, torch.Tensor], alpha: float | None) -> Any:
    """The export, loaded by open_clip alone."""
    export.save_open_clip(folder, clip, config, export.merged(clip.model, tensors, alpha), "flora")
    return open_clip.create_model(f"local-dir:{folder}").eval()


def test_open_clip_computes_what_peft_computes_on_the_split_model(tiny: Clip, real: Examples, tmp_path: Path) -> None:
    tensors = adapters_on(tiny.model)
    adapters.save(tmp_path / "adapter", deepcopy(tiny.model), tensors, ALPHA, "flora-tiny", "flora")
    base = open_clip.create_model(TINY).eval()
    before = features(base, real)
    adapted = peft.PeftModel.from_pretrained(unfuse(base), str(tmp_path / "adapter")).base_model.model
    exported = opened(tmp_path / "out", tiny, ModelConfig(), *adapters.read(tmp_path / "adapter")[1:3])
    assert_alike(features(exported, real), features(adapted, real), before)
    assert exported.visual.preprocess_cfg == tiny.model.visual.preprocess_cfg
    assert open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")(["a photo of a cat"]).equal(tiny.tokenize(["a photo of a cat"]))


def test_open_clip_gets_every_weight_that_full_fine_tuning_changed(tiny: Clip, real: Examples, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = {name: value + 0.02 * torch.randn(value.shape, generator=draw) for name, value in tiny.model.named_parameters()}
    adapters.save(tmp_path / "adapter", tiny.model, tensors, None, "flora-tiny", "fedfft")
    changed = deepcopy(tiny.model)
    changed.load_state_dict(tensors, strict=False)
    exported = opened(tmp_path / "out", tiny, ModelConfig(), *adapters.read(tmp_path / "adapter")[1:3])
    assert_alike(features(exported, real), features(changed, real), features(tiny.model, real))
    assert exported.logit_scale.item() == tensors["logit_scale"].item()


def test_only_what_was_trained_changes_and_nothing_shares_memory() -> None:
    """One block's output projection, by hand; the model itself stays as it is."""
    model, fused = unfuse(small_model()), small_model().state_dict()
    at = "visual.transformer.resblocks.1.attn.v_proj"
    tensors = {f"{at}.lora_A": torch.ones(1, WIDTH), f"{at}.lora_B": torch.arange(float(WIDTH))[:, None]}
    state = export.merged(model, tensors, 0.5)
    (changed,) = [name for name, tensor in state.items() if not tensor.equal(fused[name])]
    assert changed == "visual.transformer.resblocks.1.attn.in_proj_weight"
    added = torch.arange(float(WIDTH))[:, None].expand(-1, WIDTH) / 2
    torch.testing.assert_close(state[changed][2 * WIDTH :], fused[changed][2 * WIDTH :] + added)
    assert state[changed][: 2 * WIDTH].equal(fused[changed][: 2 * WIDTH])
    addresses = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert len({tensor.data_ptr() for tensor in state.values()} - addresses) == len(state)
    assert {(tensor.dtype, tensor.is_contiguous()) for tensor in state.values()} == {(torch.float32, True)}


def test_layers_of_another_library_keep_their_names() -> None:
    """Text towers of Hugging Face have attention that is called as ours is when split, but never was fused."""
    model = torch.nn.Module()
    model.attention = torch.nn.ModuleDict({name: torch.nn.Linear(4, 4) for name in ("q_proj", "k_proj", "v_proj", "out_proj")})
    assert set(export.merged(model, {}, None)) == set(model.state_dict())


def test_quick_gelu_of_a_tag_is_written_down(tmp_path: Path) -> None:
    """The plain name ViT-B-32 with OpenAI's weights means QuickGELU; a directory has no tag that could say so."""
    config = ModelConfig(name="ViT-B-32", pretrained="openai")
    export.save_open_clip(tmp_path / "out", load(config, 0, torch.device("meta")), config, {"logit_scale": torch.ones(1)}, "flora")
    written = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert written["model_cfg"] == open_clip.get_model_config("ViT-B-32") | {"quick_gelu": True}


def test_a_tokenizer_that_open_clip_looks_for_beside_the_weights_is_there(tmp_path: Path) -> None:
    """Models with one of Hugging Face's name it, and in a directory open_clip reads it from there."""
    words = {word: i for i, word in enumerate(["<pad>", "<unk>", "a", "cat", "dog"])}
    fast_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, "<unk>")), pad_token="<pad>", unk_token="<unk>", eos_token="<pad>"
    )
    fast_tokenizer.save_pretrained(tmp_path / "in")
    model = small_model()
    text = {
        "context_length": CONTEXT,
        "vocab_size": VOCABULARY,
        "width": WIDTH,
        "heads": 2,
        "layers": 2,
        "hf_tokenizer_name": "my/own",
    }
    vision = {"image_size": 8, "layers": 2, "width": WIDTH, "head_width": 8, "patch_size": 4}
    settings = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}}
    (tmp_path / "in" / "open_clip_config.json").write_text(json.dumps(settings))
    save_file(model.state_dict(), tmp_path / "in" / "open_clip_model.safetensors")
    config = ModelConfig(name="mine", pretrained=str(tmp_path / "in"))
    clip = load(config, 0, torch.device("cpu"))
    opened(tmp_path / "out", clip, config, {}, None)
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")(["a", "cat"])
    assert tokens.equal(clip.tokenize(["a", "cat"]))
    assert tokens[:, 0].tolist() == [2, 3]


@pytest.mark.parametrize("name", ["classifier.weight", "adapter.0.weight", "context"])
def test_what_is_no_weight_of_open_clips_is_not_merged(name: str) -> None:
    with pytest.raises(
        UserError, match=f"such as {name}, has no place in open_clip's weights; read .* adapter/trained.safetensors"
    ):
        export.merged(unfuse(small_model()), {"logit_scale": torch.ones(()), name: torch.ones(2, 8)}, None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("transformer.resblocks.0.attn.q_proj", r"q_proj.weight is 8 x 8, in the model of config.yaml it is 16 x 16"),
        ("transformer.resblocks.7.attn.q_proj", r"q_proj.weight is 8 x 8, in the model of config.yaml it is nothing"),
    ],
)
def test_an_adapter_of_another_model_is_refused(name: str, message: str) -> None:
    lora = {f"{name}.lora_A": torch.ones(2, 8), f"{name}.lora_B": torch.ones(8, 2)}
    for tensors, alpha in (lora, 1.0), ({f"{name}.weight": torch.ones(8, 8)}, None):
        with pytest.raises(UserError, match=f"belongs to another model: .*{message}"):
            export.merged(unfuse(small_model()), tensors, alpha)
    with pytest.raises(UserError, match=f"belongs to another model: .*{message}"):
        export.transformers_lora(unfuse(small_model()), lora, 1.0)


def test_an_adapter_without_its_configuration_cannot_be_read(tiny: Clip, tmp_path: Path) -> None:
    adapters.save(tmp_path / "a", deepcopy(tiny.model), adapters_on(tiny.model), ALPHA, "flora-tiny", "flora")
    (tmp_path / "a" / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"no readable adapter_config.json beside adapter_model.safetensors"):
        adapters.read(tmp_path / "a")


# --- transformers


def as_transformers(model: open_clip.CLIP, quick_gelu: bool, end: int) -> CLIPModel:
    """The same weights in transformers' own class, by the layout of its documentation and none of our code."""

    def shape(tower: Any) -> dict[str, Any]:
        width = tower.positional_embedding.shape[1]
        blocks = tower.transformer.resblocks
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": len(blocks)}
        return sizes | {"num_attention_heads": blocks[0].attn.num_heads, "hidden_act": "quick_gelu" if quick_gelu else "gelu"}

    (context, _), (vocabulary, _) = model.positional_embedding.shape, model.token_embedding.weight.shape
    text = {"vocab_size": vocabulary, "max_position_embeddings": context, "eos_token_id": end, "bos_token_id": 1}
    image = {"image_size": model.visual.image_size[0], "patch_size": model.visual.conv1.kernel_size[0]}
    size = model.text_projection.shape[1]
    config = CLIPConfig(text_config=shape(model) | text, vision_config=shape(model.visual) | image, projection_dim=size)
    state = {
        "logit_scale": model.logit_scale,
        "text_projection.weight": model.text_projection.T,
        "visual_projection.weight": model.visual.proj.T,
        "text_model.embeddings.token_embedding.weight": model.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": model.positional_embedding,
        "vision_model.embeddings.class_embedding": model.visual.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": model.visual.conv1.weight,
        "vision_model.embeddings.position_embedding.weight": model.visual.positional_embedding,
    }
    parts = {
        "text_model.final_layer_norm": model.ln_final,
        "vision_model.pre_layrnorm": model.visual.ln_pre,
        "vision_model.post_layernorm": model.visual.ln_post,
    }
    for tower, blocks in (("text_model", model.transformer.resblocks), ("vision_model", model.visual.transformer.resblocks)):
        for i, block in enumerate(blocks):
            at = f"{tower}.encoder.layers.{i}"
            parts |= {f"{at}.layer_norm1": block.ln_1, f"{at}.layer_norm2": block.ln_2}
            parts |= {
                f"{at}.mlp.fc1": block.mlp.c_fc,
                f"{at}.mlp.fc2": block.mlp.c_proj,
                f"{at}.self_attn.out_proj": block.attn.out_proj,
            }
            weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
            for part, weight, bias in zip("qkv", weights, biases, strict=True):
                state |= {f"{at}.self_attn.{part}_proj.weight": weight, f"{at}.self_attn.{part}_proj.bias": bias}
    for name, part in parts.items():
        state |= {f"{name}.weight": part.weight, f"{name}.bias": part.bias}
    clip_model = CLIPModel(config).eval()
    assert clip_model.load_state_dict(state) == ([], [])
    return clip_model


def their_features(model: Any, examples: Examples) -> Examples:
    with torch.inference_mode():
        outputs = model.get_image_features(examples[0]), model.get_text_features(examples[1])
    image, text = (F.normalize(getattr(output, "pooler_output", output), dim=-1) for output in outputs)  # a tensor before version 5
    return image, text


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # of transformers, about peft
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_transformers_computes_what_peft_computes_on_the_split_model(
    quick_gelu: bool, captions: torch.Tensor, tmp_path: Path
) -> None:
    model = small_model(quick_gelu=quick_gelu)
    clip_model = as_transformers(model, quick_gelu, END)
    examples = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), captions
    before = features(model, examples)
    torch.testing.assert_close(their_features(clip_model, examples), before, rtol=0, atol=1e-5)

    clip = Clip(unfuse(model), lambda image: image, lambda texts: captions, "small")
    tensors = adapters_on(clip.model)
    export.save_transformers(tmp_path / "out", clip, *export.transformers_lora(clip.model, tensors, ALPHA))
    expected = features(adapters.attach(deepcopy(clip.model), tensors, ALPHA).base_model.model, examples)
    adapted = peft.PeftModel.from_pretrained(clip_model, str(tmp_path / "out"))
    assert_alike(their_features(adapted, examples), expected, before)
    sits_on = [name for name, part in adapted.base_model.model.named_modules() if hasattr(part, "lora_A")]
    assert len(sits_on) == len(tensors) // 2 == 2 * 2 * 6 + 2, "no layer beside those that were trained"
    assert f"`{'quick_gelu' if quick_gelu else 'gelu'}`" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # of transformers, about peft
def test_transformers_agrees_on_real_images_and_captions(tiny: Clip, real: Examples, tmp_path: Path) -> None:
    """flora-tiny, digits and what is said of them."""
    base = open_clip.create_model(TINY).eval()
    tensors = adapters_on(tiny.model)
    export.save_transformers(tmp_path / "out", tiny, *export.transformers_lora(tiny.model, tensors, ALPHA))
    before = features(base, real)
    adapted = peft.PeftModel.from_pretrained(as_transformers(base, False, 49407), str(tmp_path / "out"))
    expected = features(adapters.attach(unfuse(base), tensors, ALPHA).base_model.model, real)
    assert_alike(their_features(adapted, real), expected, before)


CAPTIONS = ["a photo of a CAT.", "  two  words,\tthree's ", "Ünïcode & emoji 😀 (x2)!", "", "long " * 100]


@pytest.mark.parametrize("method", ["flora", "fedtext"])
def test_a_whole_clip_model_reads_and_computes_as_the_run_did(method: str, tiny: Clip, real: Examples, tmp_path: Path) -> None:
    """Low-rank updates and whole weights; the processor is loaded from the folder alone."""
    tensors: dict[str, torch.Tensor] = adapters_on(tiny.model)
    if method == "fedtext":
        draw = torch.Generator().manual_seed(0)
        tensors = {name: value + 0.02 * torch.randn(value.shape, generator=draw) for name, value in tiny.model.named_parameters()}
    state = export.merged(tiny.model, tensors, ALPHA if method == "flora" else None)
    export.save_clip_model(tmp_path / "out", tiny, state, method)
    clip_model = CLIPModel.from_pretrained(tmp_path / "out").eval()
    export.save_open_clip(tmp_path / "same", tiny, ModelConfig(), state, method)
    expected = features(open_clip.create_model(f"local-dir:{tmp_path / 'same'}").eval(), real)
    assert_alike(their_features(clip_model, real), expected, features(tiny.model, real))
    processor = CLIPProcessor.from_pretrained(tmp_path / "out", backend="pil")
    for caption, tokens in zip(CAPTIONS, tiny.tokenize(CAPTIONS), strict=True):
        (ids,) = processor.tokenizer([caption], truncation=True)["input_ids"]
        assert ids == tokens[: tokens.argmax() + 1].tolist(), caption
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8))
    torch.testing.assert_close(processor.image_processor(image, return_tensors="pt")["pixel_values"][0], tiny.preprocess(image))
    assert "CLIPModel.from_pretrained" in (tmp_path / "out" / "README.md").read_text()


def test_images_prepared_as_no_clip_processor_can_are_refused(tiny: Clip, tmp_path: Path) -> None:
    other = deepcopy(tiny.model)
    other.visual.preprocess_cfg = tiny.model.visual.preprocess_cfg | {"resize_mode": "longest"}
    with pytest.raises(UserError, match=r"cannot prepare images as this model has them .resize_mode longest, 32 x 32."):
        export.save_clip_model(tmp_path / "out", replace(tiny, model=other), {}, "flora")
    with pytest.raises(UserError, match="its tokenizer is not CLIP's own"):
        export.save_clip_model(tmp_path / "out", replace(tiny, tokenize=lambda texts: real), {}, "flora")
    assert not (tmp_path / "out").exists()


def of(text: dict[str, Any] = {}, vision: dict[str, Any] = {}) -> Callable[[], Any]:  # noqa: B006
    """How to make a small CLIP with something of its own."""
    return lambda: open_clip.CLIP(
        embed_dim=8,
        vision_cfg={"image_size": 8, "layers": 2, "width": WIDTH, "head_width": 8, "patch_size": 4} | vision,
        text_cfg={"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": WIDTH, "heads": 2, "layers": 2} | text,
    )


def named(name: str) -> Callable[[], Any]:
    return lambda: open_clip.create_model(name, load_weights=False, device="meta")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (named("RN50"), "it is a CLIP whose image tower is a ModifiedResNet"),
        (named("ViT-B-16-SigLIP"), "it is a CustomTextCLIP whose image tower is a TimmModel"),
        (of({"pool_type": "last"}), "its text tower is not both causal and read at the end token"),
        (of({"no_causal_mask": True}), "its text tower is not both causal and read at the end token"),
        (of({"ls_init_value": 0.1}), "its blocks are not CLIP's own"),
        (of({"act_kwargs": {"approximate": "tanh"}}), "its activation is not CLIP's own"),
        (of({"scale_fc": True}), "its text blocks are not CLIP's own"),
        (of({"proj_bias": True}), "its heads are not plain matrices"),
        (of({}, {"ls_init_value": 0.1}), "its blocks are not CLIP's own"),
        (of({}, {"scale_attn": True}), "its blocks are not CLIP's own"),
        (of({}, {"no_ln_pre": True}), "its image tower is not normalized first and read at the class token"),
        (of({}, {"pool_type": "avg"}), "its image tower is not normalized first and read at the class token"),
        (of({}, {"attentional_pool": True}), "its image tower is not normalized first and read at the class token"),
    ],
)
def test_a_model_that_transformers_builds_otherwise_is_refused(make: Callable[[], Any], reason: str) -> None:
    with torch.device("meta"):
        model = unfuse(make())
    with pytest.raises(UserError, match=f"a CLIPModel cannot be this model, since {reason}; use --to open_clip"):
        export.transformers_lora(model, {}, 1.0)


def test_full_fine_tuning_is_no_peft_adapter() -> None:
    with pytest.raises(UserError, match=r"trained no low-rank adapter.*try --to open_clip"):
        export.transformers_lora(unfuse(small_model()), dict(small_model().named_parameters()), None)


CLEANED = ["salt &amp; pepper", "\uff11\uff12 dogs", "a dog\u2019s \u201chouse\u201d", "\ufb01sh", "&amp;lt;3"]


def test_captions_that_a_processor_reads_otherwise_are_told_and_can_be_cleaned(tiny: Clip, tmp_path: Path) -> None:
    export.save_clip_model(tmp_path / "out", tiny, export.merged(tiny.model, {}, None), "zeroshot")
    assert export.texts_with_other_tokens(tmp_path / "out", tiny, [*CAPTIONS, *CLEANED]) == CLEANED
    card = (tmp_path / "out" / "README.md").read_text()
    (line,) = [line.strip() for line in card.splitlines() if line.strip().startswith("captions = ")]
    names: dict[str, Any] = {"captions": CLEANED, "html": html, "ftfy": ftfy}
    exec(line, names)
    tokenizer = CLIPProcessor.from_pretrained(tmp_path / "out", backend="pil").tokenizer
    for caption, tokens in zip(names["captions"], tiny.tokenize(CLEANED), strict=True):
        assert tokenizer(caption)["input_ids"] == tokens[: tokens.argmax() + 1].tolist()
