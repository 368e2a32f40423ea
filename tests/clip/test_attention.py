import open_clip
import torch
from torch import nn

from flora_hpc.clip.attention import SplitAttention, split
from tests.conftest import CONTEXT, small_model


def test_both_towers_give_the_same_features_split_and_fused() -> None:
    fused, parted = small_model(dtype=torch.float64), split(small_model(dtype=torch.float64))
    pixels, tokens = torch.randn(5, 3, 8, 8, dtype=torch.float64), torch.randint(1, 39, (4, CONTEXT))
    tokens[:, 6] = 39
    torch.testing.assert_close(parted.encode_image(pixels), fused.encode_image(pixels), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parted.encode_text(tokens), fused.encode_text(tokens), rtol=1e-12, atol=1e-12)


def test_no_fused_attention_is_left() -> None:
    kinds = [type(module) for module in split(small_model()).modules()]
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
        parted = split(model)
        torch.testing.assert_close(parted.encode_text(tokens), text, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(parted.encode_image(pixels), image, rtol=1e-4, atol=1e-5)
