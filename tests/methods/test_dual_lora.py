"""Two adapters on a layer; their gradients are in test_oracle.py."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from flora_hpc import plugins
from flora_hpc.algorithms._algorithm import Setting, Sharing
from flora_hpc.clip import adapters
from flora_hpc.clip.lora import join, separate
from flora_hpc.config import ClientConfig
from flora_hpc.errors import UserError
from flora_hpc.methods import dual_lora
from flora_hpc.methods._method import Method
from flora_hpc.records import hdf5file
from flora_hpc.roles import roles_of
from tests.conftest import ROOT, setting, small_model

AT = "transformer.resblocks.0.attn.o_proj"


def build(captions: torch.Tensor, **options: object) -> Method:
    return dual_lora.build(dual_lora.Options(name="dual_lora", **options), setting(small_model(), captions))


def sharing(algorithm: str, method: Method) -> Sharing:
    module = plugins.member("algorithms", algorithm)
    result = module.build(module.Options(name=algorithm), Setting(ClientConfig(), tuple(method.shapes), False, 3)).sharing
    assert isinstance(result, Sharing)
    return result


def test_both_adapters_start_with_no_effect_and_by_their_own_rank(captions: torch.Tensor) -> None:
    method = build(captions, rank=1, private_rank=16)
    draws = [method.init(np.random.default_rng(seed)) for seed in range(50)]
    for end, deviation in ((".lora_A", 1.0), (".private_A", 0.25)):
        values = torch.cat([tensor.flatten() for draw in draws for name, tensor in draw.items() if name.endswith(end)])
        assert values.std().item() == pytest.approx(deviation, rel=0.1)
    assert not any(tensor.any() for draw in draws for name, tensor in draw.items() if name.endswith("_B"))


def test_one_adapter_of_both_ranks_is_both_adapters_by_hand() -> None:
    """B A + B2 A2 = [1 2]^T [3 4] + [5 6]^T [7 8]."""
    tensors = {
        "layer.lora_A": torch.tensor([[3.0, 4.0]]),
        "layer.lora_B": torch.tensor([[1.0], [2.0]]),
        "layer.private_A": torch.tensor([[7.0, 8.0]]),
        "layer.private_B": torch.tensor([[5.0], [6.0]]),
    }
    joined = join(tensors)
    assert list(joined) == ["layer.lora_A", "layer.lora_B"]
    assert (joined["layer.lora_B"] @ joined["layer.lora_A"]).tolist() == [[38.0, 44.0], [48.0, 56.0]]
    parts = separate(joined, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    assert all(parts[name].equal(tensor) for name, tensor in tensors.items())


def test_adapters_that_all_clients_share_are_joined_once(captions: torch.Tensor) -> None:
    method = build(captions)
    shared = method.unpack(torch.randn(method.num_params).expand(3, -1))
    assert all(tensor.stride(0) == 0 and len(tensor) == 3 for tensor in join(shared).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rank": 17}, "method.rank: 17 is larger than"), ({"private_rank": 17}, "method.private_rank: 17 is larger than")],
)
def test_a_rank_larger_than_the_layer_is_refused(captions: torch.Tensor, options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(captions, **options)


def test_peft_reads_one_adapter_of_both_ranks(split_model: open_clip.CLIP, captions: torch.Tensor, tmp_path: Path) -> None:
    import peft

    method = build(captions, alpha=3.0)
    flat = torch.randn(method.num_params, generator=torch.Generator().manual_seed(0))
    adapters.save(tmp_path / "adapter", split_model, method.unpack(flat), method.alpha, "small", "dual_lora")
    loaded = peft.PeftModel.from_pretrained(split_model, str(tmp_path / "adapter"))
    expected = method.classes(method.unpack(flat[None]), None)[0]
    text = loaded.base_model.model.encode_text(captions, normalize=True)
    torch.testing.assert_close(text.float(), expected, rtol=1e-4, atol=1e-5)


def roles(algorithm: str, method: Method, number: int = 1) -> dict[str, str]:
    """The role of each tensor of the first layer in round `number`."""
    role = sharing(algorithm, method).role
    return {name.removeprefix(f"{AT}."): role(name, number) for name in method.shapes if name.startswith(AT)}


def test_the_second_adapter_stays_with_its_client(captions: torch.Tensor) -> None:
    method = build(captions, rank=1, private_rank=3)
    shared, private = dict.fromkeys(("lora_A", "lora_B"), "shared"), dict.fromkeys(("private_A", "private_B"), "private")
    assert roles("dual_lora", method) == shared | private
    (columns,) = roles_of(sharing("dual_lora", method), method)
    assert (len(columns.sent), len(columns.own)) == (2 * 1 * 32, 2 * 3 * 32)


def test_algorithms_for_a_and_b_treat_both_adapters_alike(captions: torch.Tensor) -> None:
    """Products of means are means of products only where every A, or every B, is the same for all clients."""
    method, names = build(captions), ("lora_A", "lora_B", "private_A", "private_B")
    assert roles("fedsa_lora", method) == dict(zip(names, ("shared", "private") * 2, strict=True))
    assert roles("ffa_lora", method) == dict(zip(names, ("frozen", "shared") * 2, strict=True))
    assert roles("rolora", method) == roles("ffa_lora", method)
    assert roles("rolora", method, 2) == dict(zip(names, ("shared", "frozen") * 2, strict=True))


def test_a_method_without_a_second_adapter_is_refused() -> None:
    module = plugins.member("algorithms", "dual_lora")
    with pytest.raises(UserError, match=r"this method has none; take method.name: dual_lora"):
        module.build(module.Options(name="dual_lora"), Setting(ClientConfig(), (f"{AT}.lora_A", f"{AT}.lora_B"), False, 3))


@pytest.mark.parametrize(("algorithm", "uplink_bytes"), [("dual_lora", 4 * 4 * 2 * 256), ("fedavg", 4 * 4 * 10 * 256)])
def test_a_runs_bytes_and_its_adapter_evaluated_and_exported(
    algorithm: str, uplink_bytes: int, tmp_path: Path, invoke: Callable[..., str]
) -> None:
    """Four layers of flora-tiny, 128 x 128. The server's own B2 stays zero where clients keep theirs."""
    few = ["-s", "rounds=2", "-s", "client.lr=0.002", "-s", "method={name: dual_lora, alpha: 4}", "-s", f"algorithm={algorithm}"]
    invoke("run", ROOT / "configs" / "quickstart.yaml", *few, "--out", tmp_path / "run")
    _, tables = hdf5file.read(tmp_path / "run")
    assert set(tables["clients"]["uplink_bytes"]) == set(tables["clients"]["downlink_bytes"]) == {uplink_bytes}
    assert f"{tables['rounds']['test_accuracy'][-1]:.4f}" in invoke("evaluate", tmp_path / "run")
    tensors = adapters.read(tmp_path / "run" / "adapter").tensors
    assert tensors[f"{AT}.lora_A"].shape == (10, 128)
    assert tensors[f"{AT}.lora_B"][:, :2].any()
    assert tensors[f"{AT}.lora_B"][:, 2:].any() == (algorithm == "fedavg")
    invoke("export", tmp_path / "run", "--to", "open_clip", "--out", tmp_path / "whole")
    weight = load_file(tmp_path / "whole" / "open_clip_model.safetensors")[f"{AT.removesuffix('o_proj')}out_proj.weight"]
    model = open_clip.create_model(f"local-dir:{ROOT / 'flora_hpc' / 'clip' / 'flora_tiny'}")
    before = model.transformer.resblocks[0].attn.out_proj.weight.detach()
    update = 4 * tensors[f"{AT}.lora_B"] @ tensors[f"{AT}.lora_A"]
    torch.testing.assert_close(weight - before, update, rtol=1e-3, atol=1e-6)
