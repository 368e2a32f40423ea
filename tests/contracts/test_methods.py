"""What every method must be, tested on every file in methods/."""

from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

from flora_hpc import configfile, experiment, plugins
from flora_hpc.clip import adapters
from flora_hpc.clip.lora import join
from flora_hpc.comm.devices import Room
from flora_hpc.methods._method import Method
from flora_hpc.records import hdf5file
from tests.conftest import ROOT, setting, small_model

METHODS = plugins.members("methods")
CONTEXT = torch.tensor([[1, 7, 8, 39] + [0] * 8])
NUM_CLIENTS, BATCH = 3, 4


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def method(name: str, captions: torch.Tensor) -> Method:
    """The method with its defaults, on a small CLIP; prompts are three context tokens and one of the name."""
    module = plugins.member("methods", name)
    prompts = torch.tensor([[1, 7, 8, 9 + i, 39] + [0] * 7 for i in range(5)])
    names = torch.tensor([[1, 9 + i, 39] + [0] * 9 for i in range(5)])
    known = {"a photo of a": CONTEXT, "a photo of a name 0.": prompts, "name 0.": names}
    result: Method = module.build(module.Options(name=name), setting(small_model(), captions, known))
    return result


def start(method: Method, seed: int = 0) -> torch.Tensor:
    return method.pack(method.init(np.random.default_rng(seed)))


def inputs(method: Method) -> torch.Tensor:
    shape = (3, 8, 8) if method.sees == "pixels" else (8,)
    return torch.randn(NUM_CLIENTS, BATCH, *shape, generator=torch.Generator().manual_seed(0))


def scores(method: Method, flat: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    tensors = method.unpack(flat)
    return method.logits(tensors, method.classes(tensors, None), images, None)


def test_the_first_line_of_its_file_says_what_it_is(name: str) -> None:
    assert len(str(plugins.member("methods", name).__doc__).splitlines()[0]) > 20


def test_initial_values_have_the_shapes_it_says_and_come_from_the_generator_alone(method: Method) -> None:
    values = method.init(np.random.default_rng(0))
    assert {key: tuple(value.shape) for key, value in values.items()} == dict(method.shapes)
    assert start(method).equal(start(method))
    assert method.num_params == sum(prod(shape) for shape in method.shapes.values()) == len(start(method))
    constants = sum(prod(method.shapes[key]) for key in method.constants)
    assert method.payload_bytes == 4 * method.num_trained == 4 * (method.num_params - constants)


def test_packing_undoes_unpacking(method: Method) -> None:
    flat = torch.arange(method.num_params, dtype=torch.float32)
    assert method.pack(method.unpack(flat)).equal(flat)


def test_scores_are_one_for_each_image_and_class(method: Method) -> None:
    with torch.inference_mode():
        result = scores(method, start(method).repeat(NUM_CLIENTS, 1), inputs(method))
    assert result.expand(NUM_CLIENTS, -1, -1).shape == (NUM_CLIENTS, BATCH, 5)
    assert result.isfinite().all()


def test_a_client_gets_the_scores_it_would_get_alone(method: Method) -> None:
    flat = start(method).repeat(NUM_CLIENTS, 1)
    flat += 0.1 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        together = scores(method, flat, inputs(method))
        for k in range(NUM_CLIENTS):
            alone = scores(method, flat[k : k + 1], inputs(method)[k : k + 1])
            torch.testing.assert_close(together[k], alone[0], rtol=1e-4, atol=1e-4)


def test_every_trained_number_of_the_forward_pass_gets_a_gradient(name: str, method: Method) -> None:
    """A tensor without one would be sent every round for nothing."""
    if not method.num_params:
        return
    leaf = (start(method) + 0.1 * torch.randn(method.num_params, generator=torch.Generator().manual_seed(1))).repeat(NUM_CLIENTS, 1)
    leaf.requires_grad_()
    (gradient,) = torch.autograd.grad(scores(method, leaf, inputs(method)).square().sum(), leaf)
    for key, part in method.unpack(gradient).items():
        if not key.endswith("k_proj.bias"):  # softmax does not see a number that is added to all
            assert part.abs().amax() > 1e-7, key


def test_what_was_saved_is_what_is_loaded(name: str, method: Method, captions: torch.Tensor, tmp_path: Path) -> None:
    """Adapters of one layer are saved as one, and what is loaded is one with the same bits."""
    if not method.num_params:
        return
    tensors = {key: torch.randn(shape) for key, shape in method.shapes.items()}
    model = setting(small_model(), captions).clip.model
    classes = ("a", "b") if method.per_class else ()
    adapters.save(tmp_path / "adapter", model, tensors, method.alpha, "small", name, classes)
    loaded = adapters.load(tmp_path / "adapter", method.shapes, "small", method.alpha, classes)
    assert set(loaded) == set(tensors)
    saved = join(tensors)
    assert all(value.equal(saved[key]) for key, value in join(loaded).items())


def test_the_quickstart_runs_with_it_and_its_adapter_gets_the_same_accuracy_again(
    name: str, tmp_path: Path, invoke: Callable[..., str]
) -> None:
    few = ["-s", "rounds=1", "-s", "partition.num_clients=40", "-s", "cohort.size=2"]
    invoke("run", ROOT / "configs" / "quickstart.yaml", "-s", f"method.name={name}", *few, "--out", tmp_path / "run")
    attributes, tables = hdf5file.read(tmp_path / "run")
    assert attributes["status"] == "finished"
    method: Method = experiment.build(
        configfile.load(tmp_path / "run" / "config.yaml")[0], torch.device("meta"), Room(2**30, gpu=False)
    ).setup.method
    assert attributes["payload_bytes"] == method.payload_bytes
    most = tables["clients"]["uplink_bytes"].max(initial=0)
    assert most == method.payload_bytes if method.portions is None else 0 < most <= method.payload_bytes
    told = invoke("evaluate", tmp_path / "run")
    assert f"{tables['rounds']['test_accuracy'][-1]:.4f}" in told


def test_the_command_line_lists_it(name: str, invoke: Callable[..., str]) -> None:
    assert f"│ {name} " in invoke("list", "methods", "--model", "ViT-B-32")
