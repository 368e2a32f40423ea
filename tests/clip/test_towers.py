"""The plain path: any model's own code, for many clients at once."""

from copy import deepcopy

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from flora_hpc.clip.adapters import attach
from flora_hpc.clip.attention import unfuse
from flora_hpc.clip.lora import Lora, dropout
from flora_hpc.clip.text import TextTower, why_not
from flora_hpc.clip.towers import PlainText, encode, text_tower
from tests.conftest import CONTEXT, VOCABULARY, WIDTH, small_model

NUM_CLIENTS = 3
TEXT = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": WIDTH, "heads": 2, "layers": 2}
VIT = {"image_size": 8, "layers": 2, "width": WIDTH, "head_width": 8, "patch_size": 4}
KINDS = {  # architecture of open_clip -> why its text tower cannot be a trie
    "sees both ways, read at the last token": (
        {"vision_cfg": VIT, "text_cfg": TEXT | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}},
        "not both causal and read at the end token",
    ),
    "a class token, as in CoCa": (
        {"vision_cfg": VIT, "text_cfg": TEXT | {"embed_cls": True}},
        "not both causal and read at the end token",
    ),
    "blocks of another kind": ({"vision_cfg": VIT, "text_cfg": TEXT | {"scale_attn": True}}, "not CLIP's own"),
    "a text tower of its own, but CLIP's": ({"vision_cfg": VIT, "text_cfg": TEXT}, None),
}


def custom(config: dict[str, object]) -> open_clip.CustomTextCLIP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CustomTextCLIP(embed_dim=8, **config)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return unfuse(model.double().eval().requires_grad_(False))


def adapters_on(model: torch.nn.Module, pattern: str) -> tuple[dict[str, Lora], list[dict[str, torch.Tensor]]]:
    """Random adapters on the Linear layers whose path holds `pattern`: for all clients at once, and by client for peft."""
    generator, many, each = torch.Generator().manual_seed(0), {}, [dict[str, torch.Tensor]() for _ in range(NUM_CLIENTS)]
    for path, layer in model.named_modules():
        if pattern in path and isinstance(layer, torch.nn.Linear):
            down = torch.randn(NUM_CLIENTS, 2, layer.in_features, generator=generator, dtype=torch.float64) * 0.3
            up = torch.randn(NUM_CLIENTS, layer.out_features, 2, generator=generator, dtype=torch.float64) * 0.3
            many[path] = Lora(down, up, 2.0)
            for client, tensors in enumerate(each):
                tensors |= {f"{path}.lora_A": down[client], f"{path}.lora_B": up[client]}
    assert many
    return many, each


@pytest.mark.parametrize("kind", KINDS)
def test_text_towers_of_all_kinds_encode_for_many_clients(captions: torch.Tensor, kind: str) -> None:
    config, reason = KINDS[kind]
    model = custom(config)
    assert reason is None or reason in str(why_not(model))
    tower = text_tower(model, captions)
    assert isinstance(tower, TextTower if reason is None else PlainText)
    torch.testing.assert_close(tower()[0], model.encode_text(captions, normalize=True), rtol=1e-10, atol=1e-10)
    many, each = adapters_on(model, "text.transformer")
    features = tower(many)
    for client in range(NUM_CLIENTS):
        expected = attach(deepcopy(model), each[client], 2.0).base_model.model.encode_text(captions, normalize=True)
        torch.testing.assert_close(features[client], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_each_client_with_weights_of_its_own(captions: torch.Tensor, kind: str) -> None:
    model = custom(KINDS[kind][0])
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: value + 0.1 * torch.randn(NUM_CLIENTS, *value.shape, generator=generator, dtype=torch.float64)
        for name, value in model.named_parameters()
        if name.startswith("text.")
    }
    features = text_tower(model, captions)(weights=weights)
    for client in range(NUM_CLIENTS):
        own = deepcopy(model)
        own.load_state_dict({name: value[client] for name, value in weights.items()}, strict=False)
        torch.testing.assert_close(features[client], own.encode_text(captions, normalize=True), rtol=1e-9, atol=1e-9)


def test_the_plain_tower_equals_the_fast_one(captions: torch.Tensor) -> None:
    model = unfuse(small_model(dtype=torch.float64))
    many, _ = adapters_on(model, "transformer.resblocks")
    many = {path: lora for path, lora in many.items() if not path.startswith("visual")}
    torch.testing.assert_close(PlainText(model, captions)(many), TextTower(model, captions)(many), rtol=1e-10, atol=1e-10)


def test_equal_captions_are_encoded_once(captions: torch.Tensor) -> None:
    model = custom(KINDS["blocks of another kind"][0])
    assert PlainText(model, captions).num_positions == 4 * CONTEXT, "the fifth repeats the first"


def residual_network() -> open_clip.CLIP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = {"image_size": 64, "layers": (1, 1, 1, 1), "width": 8, "patch_size": None}
        model = open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=TEXT)
    return unfuse(model.double().eval().requires_grad_(False))


@pytest.mark.parametrize("kind", ["transformer", "residual network"])
def test_image_towers_with_weights_of_each_client(kind: str) -> None:
    model, size = (residual_network(), 64) if kind == "residual network" else (unfuse(small_model(dtype=torch.float64)), 8)
    pixels = torch.randn(NUM_CLIENTS, 2, 3, size, size, dtype=torch.float64)
    weights = {
        name: value * torch.linspace(0.9, 1.1, NUM_CLIENTS, dtype=torch.float64).view(-1, *[1] * value.ndim)
        for name, value in model.named_parameters()
        if name.startswith("visual.")
    }
    features = encode(model, "encode_image", pixels, weights=weights)
    for client in range(NUM_CLIENTS):
        own = deepcopy(model)
        own.load_state_dict({name: value[client] for name, value in weights.items()}, strict=False)
        torch.testing.assert_close(features[client], own.encode_image(pixels[client]), rtol=1e-9, atol=1e-9)
    assert (features[0] - features[1]).abs().max() > 1e-6


def test_adapters_leave_no_trace_even_after_an_error() -> None:
    model = unfuse(small_model(dtype=torch.float64))
    many, _ = adapters_on(model, "visual.transformer")
    with pytest.raises(RuntimeError):
        encode(model, "encode_image", torch.randn(NUM_CLIENTS, 2, 2, 8, 8, dtype=torch.float64), many)
    assert not any(module._forward_hooks for module in model.modules())


# --- dropout


def test_dropout_keeps_the_mean_and_drops_the_share_it_should() -> None:
    x = torch.ones(1, 400, 50)
    dropped = dropout(0.3, [1, 2])(x)
    assert dropped.shape == (2, 400, 50)
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert not dropped[0].equal(dropped[1])


def test_a_clients_dropout_does_not_depend_on_its_group() -> None:
    x = torch.randn(1, 5, 4)
    together = dropout(0.5, [7, 8, 9])(x)
    assert together[1].equal(dropout(0.5, [8])(x)[0])


def test_dropout_acts_on_the_adapter_alone(captions: torch.Tensor) -> None:
    """With everything dropped but a rest, the frozen part stays: the result is linear in what is kept."""
    model = unfuse(small_model(dtype=torch.float64))
    many, _ = adapters_on(model, "transformer.resblocks.1.mlp.down_proj")
    nothing = {path: lora._replace(drop=lambda x: torch.zeros_like(x).expand(NUM_CLIENTS, -1, -1)) for path, lora in many.items()}
    tower = TextTower(model, captions)
    many = {path: lora for path, lora in nothing.items() if not path.startswith("visual")}
    expected = F.normalize(model.encode_text(captions), dim=-1).expand(NUM_CLIENTS, -1, -1)
    torch.testing.assert_close(tower(many), expected, rtol=1e-10, atol=1e-10)
    assert np.isfinite(tower(many).numpy()).all()
