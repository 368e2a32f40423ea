from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from flora_hpc import plugins
from flora_hpc.clip import precision
from flora_hpc.clip.attention import unfuse
from flora_hpc.clip.frozen import FrozenProducts
from flora_hpc.clip.towers import image_features
from flora_hpc.errors import UserError
from tests import digits_file
from tests.conftest import NEEDS_BF16, setting, small_model

CPU = torch.device("cpu")


def types(module: nn.Module) -> set[torch.dtype]:
    return {layer.weight.dtype for layer in module.modules() if isinstance(layer, nn.Linear)}


@pytest.mark.parametrize(("text", "image"), [(True, False), (False, True), (True, True)])
def test_the_towers_that_take_part_are_lowered(text: bool, image: bool) -> None:
    model = unfuse(small_model())
    precision.lower("bf16", model, "small", "flora", {"transformer.resblocks.0.attn.o_proj.lora_A"}, text, image)
    assert types(model.transformer) == {torch.bfloat16 if text else torch.float32}
    assert types(model.visual) == {torch.bfloat16 if image else torch.float32}
    assert model.token_embedding.weight.dtype == model.ln_final.weight.dtype == torch.float32


def test_fp32_leaves_everything_as_it_is() -> None:
    model = unfuse(small_model())
    precision.lower("fp32", model, "small", "fedfft", {"transformer.resblocks.0.attn.o_proj.weight"}, True, True)
    assert types(model) == {torch.float32}


def test_weights_that_are_trained_are_not_lowered() -> None:
    with pytest.raises(UserError, match=r"bf16 is for frozen weights, but fedtext trains them; set model.precision: fp32"):
        precision.lower("bf16", unfuse(small_model()), "small", "fedtext", {"ln_final.weight"}, True, False)


def test_a_text_tower_of_another_kind_is_refused() -> None:
    with torch.device("meta"):
        other = open_clip.create_model("ViT-B-32-SigLIP2-256", load_weights=False, device="meta")
    with pytest.raises(UserError, match="bf16 cannot be had with other, since its text tower is not both causal"):
        precision.lower("bf16", other, "other", "flora", set(), True, False)


def test_layers_inside_a_fused_attention_stay_as_they_are() -> None:
    """coca's pooling keeps nn.MultiheadAttention, which reads its output projection itself, in the type of its other weights."""
    model = unfuse(small_model())
    model.visual.attn_pool = nn.MultiheadAttention(16, 2)
    precision.lower("bf16", model, "small", "flora", set(), False, True)
    assert {parameter.dtype for parameter in model.visual.attn_pool.parameters()} == {torch.float32}
    assert model.visual.transformer.resblocks[0].mlp.c_fc.weight.dtype == torch.bfloat16


class Keywords(nn.Module):
    """Calls F.linear as some towers of timm's do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(input=x, weight=self.inner.weight, bias=self.inner.bias)


@NEEDS_BF16
def test_towers_that_read_weights_themselves_run_in_bf16() -> None:
    """CLIP's ResNets pool by an attention that reads its layers' weights; timm names the weights in its calls."""
    resnet = open_clip.modified_resnet.ModifiedResNet((1, 1, 1, 1), 8, heads=4, image_size=64, width=8).eval().requires_grad_(False)
    model = SimpleNamespace(visual=resnet, encode_image=lambda pixels, normalize: resnet(pixels))
    pixels = torch.randn(2, 3, 64, 64)
    whole = image_features(model, pixels)
    with precision.lowered("bf16", resnet):
        torch.testing.assert_close(image_features(model, pixels), whole)
    module, x = Keywords(), torch.randn(3, 8)
    with precision.lowered("bf16", module), FrozenProducts():
        low = module(x)
    assert low.dtype == torch.float32
    assert 0 < (low - module(x)).abs().max() < 0.1


@pytest.mark.parametrize("kind", ["bf16", "tf32"])
def test_gpus_before_ampere_are_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with pytest.raises(UserError, match=f"Tesla V100 does not multiply in {kind}"):
        precision.prepare_device(kind, torch.device("cuda"))


def test_tf32_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="tf32 is for NVIDIA GPUs"):
        precision.prepare_device("tf32", CPU)


@pytest.mark.parametrize(
    ("line", "refused"),
    [("flags : fpu avx512f", True), ("flags\t\t: fpu avx512_bf16", False), ("Features\t: fp asimd bf16", False)],
)
def test_bf16_is_refused_where_it_would_be_slower(line: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: f"model name : some processor with bf16\n{line}\n")
    if refused:
        with pytest.raises(UserError, match=r"^features.compute: .* does not multiply in bfloat16 .*; set features.compute: fp32"):
            precision.prepare_device("bf16", CPU, "features.compute")
    else:
        precision.prepare_device("bf16", CPU)


@NEEDS_BF16
@pytest.mark.parametrize("targets", [("text.out_proj",), ("image.out_proj",), ("text.mlp", "image.q_proj")])
def test_gradients_are_near_those_of_fp32(captions: torch.Tensor, targets: tuple[str, ...]) -> None:
    def gradient(kind: str) -> torch.Tensor:
        model = setting(small_model(), captions)
        module = plugins.member("methods", "flora")
        method = module.build(module.Options(name="flora", targets=targets, alpha=4), model)
        precision.lower(
            kind, model.clip.model, "small", "flora", set(method.shapes), "text" in str(targets), "image" in str(targets)
        )
        flat = method.pack(method.init(np.random.default_rng(0)))
        generator = torch.Generator().manual_seed(0)
        leaf = (flat + 0.1 * torch.randn(2, len(flat), generator=generator)).requires_grad_()
        tensors = method.unpack(leaf)
        inputs = torch.randn(2, 4, *((3, 8, 8) if method.sees == "pixels" else (8,)), generator=generator)
        scores = method.logits(tensors, method.classes(tensors, None), inputs, None)
        result: torch.Tensor = torch.autograd.grad(scores.sin().sum(), leaf)[0]
        return result

    exact, half = gradient("fp32"), gradient("bf16")
    assert half.dtype == torch.float32
    assert 1e-5 < (exact - half).norm() / exact.norm() < 0.1


@NEEDS_BF16
@pytest.mark.mpi
def test_one_rank_and_two_give_the_same_bits_and_adapters_stay_fp32(
    flora: Callable[..., object], mpiexec: list[str], tmp_path: Path
) -> None:
    data = f"data={{name: hdf5, path: {digits_file.write(tmp_path / 'few.h5', 150, 50)}}}"
    options = ["-s", "model.precision=bf16", "-s", "rounds=2", "-s", "client.lr=1e-3", "-s", data]
    adapters = []
    for name, under in (("one", None), ("two", [*mpiexec, "-n", "2"])):
        result = flora("run", "configs/quickstart.yaml", *options, "--out", tmp_path / name, under=under)
        assert result.returncode == 0, result  # type: ignore[attr-defined]
        adapters.append((tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]
    assert b'"F32"' in adapters[0][:4096]
    assert b'"BF16"' not in adapters[0][:4096]
    with h5py.File(tmp_path / "one" / "run.h5") as file:
        assert np.isfinite(file["rounds"]["train_loss"][1:]).all()
