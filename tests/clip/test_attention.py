import open_clip
import pytest
import torch
from torch import nn

from flora_hpc.clip.attention import SplitAttention, by_current_names, fuse, unfuse
from flora_hpc.methods._lora import PROJECTIONS, find_layers
from tests.conftest import CONTEXT, small_model


def test_both_towers_give_the_same_features_split_and_fused() -> None:
    fused, parted = small_model(dtype=torch.float64), unfuse(small_model(dtype=torch.float64))
    pixels, tokens = torch.randn(5, 3, 8, 8, dtype=torch.float64), torch.randint(1, 39, (4, CONTEXT))
    tokens[:, 6] = 39
    torch.testing.assert_close(parted.encode_image(pixels), fused.encode_image(pixels), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parted.encode_text(tokens), fused.encode_text(tokens), rtol=1e-12, atol=1e-12)


def test_no_fused_attention_is_left() -> None:
    kinds = [type(module) for module in unfuse(small_model()).modules()]
    assert nn.MultiheadAttention not in kinds
    assert kinds.count(SplitAttention) == 4


def test_attention_without_biases() -> None:
    fused = nn.MultiheadAttention(8, 2, bias=False, batch_first=True, dtype=torch.float64)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(SplitAttention(fused)(x, x, x)[0], fused(x, x, x, need_weights=False)[0])


def test_the_real_architecture_at_full_size() -> None:
    """ViT-B-32 with random weights: the same numbers as open_clip's own model to rounding."""
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32", load_weights=False).eval()
    tokens = open_clip.get_tokenizer("ViT-B-32")(["a photo of a cat.", "a photo of a very small dog."])
    pixels = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        text, image = model.encode_text(tokens), model.encode_image(pixels)
        parted = unfuse(model)
        torch.testing.assert_close(parted.encode_text(tokens), text, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(parted.encode_image(pixels), image, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP", "coca_ViT-B-32"])
def test_no_layer_of_an_adapter_is_in_a_model_that_was_not_split(name: str) -> None:
    """PEFT leaves out, without a word, what it cannot place: one name in common, and it would load a part."""
    with torch.device("meta"):
        model = open_clip.create_model(name, load_weights=False, device="meta", pretrained_text=False)
    before, shapes = {path for path, _ in model.named_modules()}, {n: t.shape for n, t in model.state_dict().items()}
    unfuse(model)
    targets = [f"text.{part}" for part in (*PROJECTIONS, "head")]
    layers = find_layers(model, tuple(targets), name)  # type: ignore[arg-type]
    assert len(layers) > 70
    assert not before & set(layers)
    assert {n: t.shape for n, t in fuse(model, model.state_dict()).items()} == shapes


def test_former_names_are_renewed_only_where_the_model_has_todays() -> None:
    at = "transformer.resblocks.0"
    former = {
        f"{at}.attn.out_proj.lora_A": torch.ones(1),
        "text_projection.weight": torch.zeros(1),
        "a.mlp.c_fc.bias": torch.ones(2),
    }
    names = {f"{at}.attn.o_proj.lora_A", "text_projection.linear.weight", "a.mlp.c_fc.bias"}
    assert by_current_names(former, names).keys() == names
    assert by_current_names(former, former).keys() == former.keys()
