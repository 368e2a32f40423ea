"""Fed-SB: R alone is trained and sent, and A, B and the start of R follow from a first gradient of whole weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from flora_hpc import configfile, experiment, firstgradient, trainer
from flora_hpc.clip import adapters
from flora_hpc.clip.lora import join
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.communicator import AgreedError
from flora_hpc.comm.devices import Room
from flora_hpc.comm.meter import Meter
from flora_hpc.config import ClientConfig
from flora_hpc.data.holdings import Partition
from flora_hpc.data.inputs import Features
from flora_hpc.methods import fed_sb
from flora_hpc.methods._method import Method
from flora_hpc.optimizers import OPTIMIZERS
from flora_hpc.records import hdf5file
from flora_hpc.setup import Setup, Site
from tests.conftest import ROOT, refusal, setting, small_model
from tests.threads import on_ranks

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
AT = "transformer.resblocks.0.attn.o_proj"
RANK, ALPHA, SIZES = 3, 2.0, (8, 5, 2)


def build(captions: torch.Tensor, **options: Any) -> Method:
    return fed_sb.build(fed_sb.Options(name="fed_sb", **options), setting(small_model(), captions))


def made(captions: torch.Tensor, client: dict[str, Any], **options: Any) -> Setup:
    """A setup of three clients with 8, 5 and 2 examples, all in every round, on a small model in float64."""
    changes = ["partition={name: iid, num_clients: 3}", "data={name: digits}", f"method={{name: fed_sb, rank: {RANK}}}"]
    config, _ = configfile.load(QUICKSTART, changes)
    built = experiment.build(config, torch.device("meta"), Room(2**40, gpu=False))
    method = fed_sb.build(fed_sb.Options(name="fed_sb", rank=RANK, alpha=ALPHA, **options), setting(small_model(), captions))
    images = torch.randn((15, 8), generator=torch.Generator().manual_seed(0))
    return replace(
        built.setup,
        method=method,
        client=ClientConfig(batch_size=4, shuffle=False, loss="classification", **client),
        holdings=Partition(np.arange(15), np.cumsum([0, *SIZES])),
        inputs=Features(images),
        labels=torch.arange(15) % len(captions),
    )


def site(comm: Any = None) -> Site:
    return Site(Meter(comm or Serial()))


def direct_gradients(setup: Setup, captions: torch.Tensor, layers: list[str]) -> dict[str, np.ndarray]:
    """The mean gradient of each layer's weight over the first batches of the clients, by the model's own code in float64."""
    model = small_model(dtype=torch.float64)
    weights = {path: dict(adapters_of(model))[path].requires_grad_() for path in layers}
    text = model.encode_text(captions, normalize=True)
    rows = np.concatenate([setup.holdings.examples(client)[:4] for client in range(3)])
    images = F.normalize(setup.inputs(torch.from_numpy(rows)).double(), dim=-1)
    loss = F.cross_entropy(model.logit_scale.exp() * images @ text.T, setup.labels[rows])
    found = torch.autograd.grad(loss, list(weights.values()))
    return {path: part.numpy() for path, part in zip(layers, found, strict=True)}


def adapters_of(model: open_clip.CLIP) -> list[tuple[str, torch.Tensor]]:
    """The weights of the text tower's output projections, by the names of an unfused model."""
    blocks = model.transformer.resblocks
    return [(f"transformer.resblocks.{number}.attn.o_proj", block.attn.out_proj.weight) for number, block in enumerate(blocks)]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_the_start_is_the_optimizers_first_step_along_the_mean_gradient(optimizer: str, captions: torch.Tensor) -> None:
    """Against the model's own code in float64: alpha B R A is the best approximation of the step, of this rank."""
    config = {"optimizer": optimizer, "lr": 0.01} | ({} if optimizer == "sgd" else {"eps": 1e-4})
    setup = made(captions, config)
    layers = [name.rpartition(".")[0] for name in setup.method.shapes if name.endswith("_R")]
    tensors = setup.method.unpack(firstgradient.initial_adapter(setup, site()))
    for path, mean in direct_gradients(setup, captions, layers).items():
        step = -0.01 * mean if optimizer == "sgd" else -0.01 * mean / (np.abs(mean) + 1e-4)
        left, values, right = np.linalg.svd(step)
        best = (left[:, :RANK] * values[:RANK]) @ right[:RANK]
        down, middle, up = (tensors[f"{path}.lora_{factor}"].double().numpy() for factor in "ARB")
        np.testing.assert_allclose(ALPHA * up @ middle @ down, best, rtol=0, atol=3e-5 * values[0])
        np.testing.assert_allclose(middle, np.diag(values[:RANK] / ALPHA), rtol=0, atol=3e-5 * values[0])
        np.testing.assert_allclose(down @ down.T, np.eye(RANK), rtol=0, atol=1e-6)
        np.testing.assert_allclose(up.T @ up, np.eye(RANK), rtol=0, atol=1e-6)
        assert (up[np.abs(up).argmax(0), np.arange(RANK)] > 0).all()


@pytest.mark.parametrize("shape", [(7, 5), (4, 9)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_factors_of_a_step_equal_those_of_numpy(shape: tuple[int, int], optimizer: str, captions: torch.Tensor) -> None:
    """To 1e-9, from a mean gradient that is given."""
    mean, config = np.random.default_rng(0).standard_normal(shape), ClientConfig(optimizer=optimizer, lr=0.3, eps=0.01)
    step = firstgradient.first_step(torch.from_numpy(mean), config)
    expected = -0.3 * mean if optimizer == "sgd" else -0.3 * mean / (np.abs(mean) + 0.01)
    np.testing.assert_allclose(step.numpy(), expected, rtol=0, atol=1e-9)
    first = build(captions, rank=2, alpha=ALPHA).first_gradient
    assert first is not None
    down, middle, up = (tensor.numpy() for tensor in first.tensors(AT, step).values())
    left, values, right = np.linalg.svd(expected)
    np.testing.assert_allclose(ALPHA * up @ middle @ down, (left[:, :2] * values[:2]) @ right[:2], rtol=0, atol=1e-9)
    np.testing.assert_allclose(middle, np.diag(values[:2] / ALPHA), rtol=0, atol=1e-9)


def test_a_step_of_adam_has_the_size_of_the_rate_and_the_sign_of_the_gradient() -> None:
    """As the papers have it, whose step is -lr sign G: the limit for a small eps."""
    mean = torch.tensor([[3e-3, -5.0], [0.0, 2e-4]], dtype=torch.float64)
    step = firstgradient.first_step(mean, ClientConfig(optimizer="adam", lr=0.3, eps=1e-12))
    torch.testing.assert_close(step, -0.3 * mean.sign(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("targets", [("text.out_proj",), ("text.mlp", "text.head"), ("image.mlp", "image.q_proj")], ids=str)
def test_the_probe_has_the_gradient_of_whole_weights(targets: tuple[str, ...], captions: torch.Tensor) -> None:
    """At zero, against weights of the model's own layers, in float64; layers may be wider than high, or higher than wide."""
    model = setting(small_model(dtype=torch.float64), captions)
    first = fed_sb.build(fed_sb.Options(name="fed_sb", rank=2, alpha=5.0, dropout=0.5, targets=targets), model).first_gradient
    assert first is not None
    probe, clip = first.probe, model.clip.model
    shape = (1, 4, 3, 8, 8) if probe.sees == "pixels" else (1, 4, 8)
    inputs = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaf = torch.zeros(1, probe.num_params, dtype=torch.float64, requires_grad=True)
    tensors = probe.unpack(leaf)
    scores = probe.logits(tensors, probe.classes(tensors, None), inputs, None)
    (gradient,) = torch.autograd.grad(scores.square().sum(), leaf)
    weights = [clip.get_submodule(name.removesuffix(fed_sb.CHANGE)).weight.requires_grad_() for name in probe.shapes]
    images = clip.encode_image(inputs[0]) if probe.sees == "pixels" else inputs[0]
    text = clip.encode_text(captions, normalize=True)
    direct = clip.logit_scale.exp() * F.normalize(images, dim=-1) @ text.T
    expected = torch.autograd.grad(direct.square().sum(), weights)
    for name, part, right in zip(probe.shapes, probe.unpack(gradient[0]).values(), expected, strict=True):
        torch.testing.assert_close(part, right, rtol=1e-9, atol=1e-9 * float(right.abs().max()), msg=name)


def test_the_mean_of_products_is_the_product_of_means(captions: torch.Tensor) -> None:
    """Clients share A and B, so averaging R is exact."""
    method = build(captions, rank=2)
    tensors = method.unpack(torch.randn(3, method.num_params, generator=torch.Generator().manual_seed(0)).double())
    tensors = {name: tensor if name.endswith("_R") else tensor[:1].repeat(3, 1, 1) for name, tensor in tensors.items()}
    weights = torch.tensor([8, 5, 2]).double()[:, None, None] / 15
    whole = join(tensors)
    of_products = (weights * (whole[f"{AT}.lora_B"] @ whole[f"{AT}.lora_A"])).sum(0)
    up, middle, down = (tensors[f"{AT}.lora_{factor}"] for factor in "BRA")
    torch.testing.assert_close(up[0] @ (weights * middle).sum(0) @ down[0], of_products, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_any_number_of_ranks_gives_the_same_bits(size: int, captions: torch.Tensor) -> None:
    """Of three clients and two layers; some ranks have no client or no layer. Nor does the number of threads matter."""
    setup = made(captions, {"lr": 0.01})
    expected = firstgradient.initial_adapter(setup, site())
    for adapter in on_ranks(size, lambda comm: firstgradient.initial_adapter(setup, site(comm))):
        assert adapter.equal(expected)


@pytest.mark.parametrize("num_threads", [2, 3])
def test_any_number_of_threads_gives_the_same_bits(num_threads: int, captions: torch.Tensor) -> None:
    setup, before = made(captions, {"lr": 0.01}, targets=("text.out_proj", "text.mlp")), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = firstgradient.initial_adapter(setup, site())
        torch.set_num_threads(num_threads)
        assert firstgradient.initial_adapter(setup, site()).equal(expected)
        assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)


def test_the_gradient_is_that_of_the_first_step_of_training(captions: torch.Tensor) -> None:
    """On the same images: with R alone trained, its gradient is alpha B^T G A^T, where G is that of the weight."""
    setup = made(captions, {"optimizer": "sgd", "lr": 1.0, "weight_decay": 0.0, "epochs": 1})
    first = setup.method.first_gradient
    assert first is not None
    row, num_images = firstgradient.gradient(setup, first, 2, torch.device("cpu"))
    assert num_images == SIZES[2]
    adapter = setup.method.pack(setup.method.init(np.random.default_rng(0)))  # R is zero
    batches = trainer.make_batches(np.array([2]), setup.holdings, setup.client, setup.seed, 1, setup.padding_multiple)
    update = trainer.train(setup.task, trainer.Start(adapter), batches).updates[0]
    whole, tensors = first.probe.unpack(row[0])[f"{AT}{fed_sb.CHANGE}"], setup.method.unpack(adapter)
    expected = -ALPHA * tensors[f"{AT}.lora_B"].T @ whole @ tensors[f"{AT}.lora_A"].T
    torch.testing.assert_close(setup.method.unpack(update)[f"{AT}.lora_R"], expected, rtol=1e-4, atol=1e-6)


def test_clients_of_the_first_gradient_lie_at_equal_distances(captions: torch.Tensor) -> None:
    setup = made(captions, {}, first_clients=2)
    assert setup.first_clients.tolist() == [0, 1]
    many = replace(setup, holdings=Partition(np.arange(100), np.arange(101)))
    assert many.first_clients.tolist() == [0, 50]
    assert replace(many, method=build(captions, first_clients=500)).first_clients.tolist() == list(range(100))


def test_gradients_that_are_not_finite_end_the_run_with_a_cure(captions: torch.Tensor) -> None:
    setup = made(captions, {})
    setup = replace(setup, inputs=Features(torch.full((15, 8), float("nan"))))
    with pytest.raises(AgreedError, match=r"no gradient of the 3 clients is finite.*look for NaN"):
        firstgradient.initial_adapter(setup, site())


def test_a_client_whose_gradient_is_not_finite_is_left_out(captions: torch.Tensor) -> None:
    setup = made(captions, {"optimizer": "sgd", "lr": 1.0})
    images = torch.randn((15, 8), generator=torch.Generator().manual_seed(0))
    images[setup.holdings.examples(1)] = float("nan")
    assert firstgradient.initial_adapter(replace(setup, inputs=Features(images)), site()).isfinite().all()


def test_a_rank_larger_than_the_layer_is_refused() -> None:
    told = refusal("plan", QUICKSTART, "-s", "method={name: fed_sb, rank: 129}")
    assert "method.rank: 129 is larger than transformer.resblocks.0.attn.out_proj, which is 128 x 128; lower it" in told


@pytest.mark.parametrize("algorithm", ["ffa_lora", "rolora", "fedsa_lora", "fedsvd", "flexlora", "fedex_lora", "hetlora"])
def test_algorithms_for_a_and_b_are_refused(algorithm: str) -> None:
    """Clients train neither A nor B."""
    told = refusal("plan", QUICKSTART, "-s", "method.name=fed_sb", "-s", f"algorithm={algorithm}")
    assert f"algorithm.name: {algorithm} " in told
    assert told.endswith("set method.name: flora, or take another algorithm")


@pytest.mark.parametrize(
    ("option", "cure"),
    [
        ("evaluate.per_rank=true", "leave it out, or set method.name: feddylora"),
        ("evaluate.cross_term=true", "leave it out"),
        ("algorithm={name: by_name, private: ['*.lora_B']}", "fits none of the trained tensors"),
        ("algorithm=fed_sb", "fed_sb is a method: set method.name: fed_sb"),
    ],
)
def test_what_means_nothing_here_is_refused(option: str, cure: str) -> None:
    assert cure in refusal("plan", QUICKSTART, "-s", "method.name=fed_sb", "-s", option)


def test_a_plan_says_what_is_sent_before_round_0(invoke: Callable[..., str]) -> None:
    told = invoke("plan", QUICKSTART, "-s", "method={name: fed_sb, rank: 4, first_clients: 6}")
    words = " ".join(told.replace("│", " ").split())
    assert "fed_sb, 64 trained numbers per client" in words
    assert "a client sends 256 bytes per update and receives 256" in words
    assert "before round 0, 6 clients send 262,144 bytes each" in words
    assert "all 10 registered clients receive 16,384 bytes each" in words


def test_a_runs_bytes_and_its_adapter_evaluated_and_exported(tmp_path: Path, invoke: Callable[..., str]) -> None:
    """Four layers of flora-tiny, 128 x 128: 4 rank^2 numbers in a round."""
    method = "method={name: fed_sb, rank: 4, first_clients: 6}"
    few = ["-s", "rounds=3", "-s", "client.lr=0.002", "-s", method]
    invoke("run", QUICKSTART, *few, "--out", tmp_path / "run")
    attributes, tables = hdf5file.read(tmp_path / "run")
    assert set(tables["clients"]["uplink_bytes"]) == set(tables["clients"]["downlink_bytes"]) == {4 * 4 * 4**2}
    assert tables["rounds"]["uplink_bytes"].tolist() == [6 * 4 * 4 * 128**2, *[10 * 256] * 3]
    assert tables["rounds"]["downlink_bytes"].tolist() == [10 * 4 * 4 * 4 * 256, *[10 * 256] * 3]
    assert attributes["num_params"] == 4 * 4**2
    assert tables["rounds"]["test_accuracy"][-1] > tables["rounds"]["test_accuracy"][0]
    assert f"{tables['rounds']['test_accuracy'][-1]:.4f}" in invoke("evaluate", tmp_path / "run")
    tensors = adapters.read(tmp_path / "run" / "adapter").tensors
    assert {name.rpartition(".")[2] for name in tensors} == {"lora_A", "lora_B"}
    assert tensors[f"{AT}.lora_B"].shape == (128, 4)
