from copy import deepcopy

import open_clip
import pytest
import torch

from flora_hpc.clip import trie
from flora_hpc.clip.adapters import attach
from flora_hpc.clip.attention import unfuse
from flora_hpc.clip.lora import Lora
from flora_hpc.clip.text import TextTower, why_not
from tests.conftest import small_model

TARGETS = ["attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.up_proj", "mlp.down_proj"]


def random_adapters(model: open_clip.CLIP, targets: list[str], num_clients: int, alpha: float = 1.0) -> dict[str, Lora]:
    generator = torch.Generator().manual_seed(0)
    adapters = {}
    for block in range(2):
        for target in targets:
            path = f"transformer.resblocks.{block}.{target}"
            layer = model.get_submodule(path)
            down = torch.randn(num_clients, 2, layer.in_features, generator=generator, dtype=torch.float64)
            up = torch.randn(num_clients, layer.out_features, 2, generator=generator, dtype=torch.float64)
            adapters[path] = Lora(down * 0.3, up * 0.3, alpha)
    return adapters


def test_features_without_adapters_are_those_of_open_clip(split_model: open_clip.CLIP, captions: torch.Tensor) -> None:
    expected = split_model.encode_text(captions, normalize=True)
    torch.testing.assert_close(TextTower(split_model, captions)()[0], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("targets", [*([t] for t in TARGETS), TARGETS], ids=[*TARGETS, "all"])
def test_features_of_every_client_are_those_of_peft(
    split_model: open_clip.CLIP, captions: torch.Tensor, targets: list[str]
) -> None:
    adapters = random_adapters(split_model, targets, num_clients=3, alpha=4.0)
    features = TextTower(split_model, captions)(adapters)
    for client in range(3):
        tensors = {f"{path}.lora_A": lora.down[client] for path, lora in adapters.items()}
        tensors |= {f"{path}.lora_B": lora.up[client] for path, lora in adapters.items()}
        wrapped = attach(deepcopy(split_model), tensors, 4.0)
        expected = wrapped.base_model.model.encode_text(captions, normalize=True)
        torch.testing.assert_close(features[client], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("own", [1, 2])
def test_cut_into_blocks_features_and_gradients_stay_the_same(
    split_model: open_clip.CLIP, captions: torch.Tensor, own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed() -> list[torch.Tensor]:
        adapters = random_adapters(split_model, TARGETS, num_clients=3)
        leaves = [tensor.requires_grad_() for lora in adapters.values() for tensor in (lora.down, lora.up)]
        features = TextTower(split_model, captions)(adapters)
        return [features.detach(), *torch.autograd.grad(features.sin().sum(), leaves)]

    whole = computed()
    monkeypatch.setattr(trie, "BLOCK_NODES", own)
    assert len(trie.build_trie(captions).starts) > 2, "there are several blocks"
    for one, other in zip(whole, computed(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_quick_gelu_is_respected(captions: torch.Tensor) -> None:
    model = unfuse(small_model(dtype=torch.float64, quick_gelu=True))
    expected = model.encode_text(captions, normalize=True)
    torch.testing.assert_close(TextTower(model, captions)()[0], expected, rtol=1e-11, atol=1e-11)


def test_a_gradient_reaches_every_adapter(split_model: open_clip.CLIP, captions: torch.Tensor) -> None:
    adapters = random_adapters(split_model, TARGETS, num_clients=2)
    leaves = [tensor.requires_grad_() for lora in adapters.values() for tensor in (lora.down, lora.up)]
    TextTower(split_model, captions)(adapters).sum(0).sin().sum().backward()
    assert len(leaves) == 24
    for leaf in leaves:
        assert leaf.grad is not None
        assert (leaf.grad.abs().amax((1, 2)) > 1e-9).all()


def test_a_gradient_reaches_every_adapter_of_peft(split_model: open_clip.CLIP, captions: torch.Tensor) -> None:
    adapters = random_adapters(split_model, TARGETS, num_clients=1)
    tensors = {f"{path}.lora_A": lora.down[0] for path, lora in adapters.items()}
    tensors |= {f"{path}.lora_B": lora.up[0] for path, lora in adapters.items()}
    wrapped = attach(split_model, tensors, 4.0)
    wrapped.base_model.model.encode_text(captions).sin().sum().backward()
    gradients = [p.grad for name, p in wrapped.named_parameters() if "lora_" in name]
    assert len(gradients) == 24
    assert all(gradient is not None and gradient.abs().max() > 1e-9 for gradient in gradients)


def test_text_towers_of_another_kind_are_told_apart_with_the_reason() -> None:
    with torch.device("meta"):
        other = open_clip.create_model("ViT-B-32-SigLIP2-256", load_weights=False, device="meta")
    assert "not both causal" in str(why_not(other))
