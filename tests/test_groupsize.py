import inspect

import numpy as np
import pytest
import torch

from flora_hpc import plugins
from flora_hpc.clip.load import Clip, load
from flora_hpc.comm.devices import Room
from flora_hpc.config import ClientConfig, ModelConfig
from flora_hpc.data.holdings import Partition
from flora_hpc.groupsize import Load, choose
from flora_hpc.groupsize import load as load_of
from flora_hpc.losses import contrastive
from flora_hpc.methods._method import Method, Setting

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLENTY = Room(2**50, gpu=False)
FAST, FIT, ALL = "more would not be faster", "memory holds no more", "a round has no more clients"


def of(num_params: int = 0, state: int = 0, kept: int = 0, activation: int = 0, feature: int = 0) -> Load:
    return Load(num_params, state, kept, activation, feature)


@pytest.mark.parametrize(
    ("num_clients", "load", "room", "expected"),
    [
        (80, of(), PLENTY, (80, ALL)),
        (80, of(), Room(2**50, gpu=True), (5, "a cohort is cut into about sixteen")),
        (10_000, of(), PLENTY, (256, FAST)),
        (10_000, of(activation=2**16), PLENTY, (32, FAST)),
        (10_000, of(activation=2**30), PLENTY, (1, FAST)),
        (10_000, of(feature=2**18), PLENTY, (32, FAST)),
        (10_000, of(kept=2**25), PLENTY, (6, FAST)),
        (10_000, of(num_params=2**19), PLENTY, (8, FAST)),
        (100_000, of(activation=2**16), Room(2**50, gpu=True), (512, FAST)),
        (10_000, of(kept=1000), Room(20_500, gpu=False), (20, FIT)),
        (10_000, of(kept=1000), Room(10, gpu=False), (1, FIT)),
    ],
)
def test_the_tightest_bound_decides(num_clients: int, load: Load, room: Room, expected: tuple[int, str]) -> None:
    assert choose(num_clients, load, room) == expected


def test_the_number_of_ranks_is_not_asked_for() -> None:
    """On GPUs it is part of what decides the bits, and those must not depend on ranks."""
    assert list(inspect.signature(choose).parameters) == ["num_clients", "load", "room"]


def test_bytes_of_a_group_by_hand() -> None:
    """10 numbers: 40 bytes of weights and 80 of Adam's moments; a step adds gradients, 40, and what it keeps, 500."""
    load = of(num_params=10, state=80, kept=500)
    assert load.of_group(1) == 40 + 80 + 40 + 500
    assert load.of_group(3) == 3 * load.of_group(1)
    large = of(num_params=2**22, state=0)  # gradients and their parts, 8 bytes a number, are less than fixed point, 32
    assert large.of_group(1) == (4 + 32) * 2**22
    assert large.of_group(8) == 8 * (4 + 8) * 2**22  # fixed point is made in blocks


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load(ModelConfig(), 0, torch.device("cpu"))


def build(clip: Clip, name: str, **options: object) -> Method:
    member, classes = plugins.member("methods", name), tuple(f"a photo of the digit {word}." for word in WORDS)
    setting = Setting(clip, WORDS, classes, Partition(np.arange(8), np.array([0, 8])), np.arange(8))
    method: Method = member.build(member.Options(name=name, **options), setting)
    return method


def test_the_optimizer_decides_what_is_remembered(clip: Clip) -> None:
    method = build(clip, "flora")
    for options, copies in [({}, 2), ({"optimizer": "sgd"}, 0), ({"optimizer": "sgd", "momentum": 0.9}, 1)]:
        remembered = load_of(clip, method, ClientConfig(**options), 10).state_bytes
        assert remembered // (4 * method.num_params) == copies


CASES = [
    ("flora", {}),
    ("flora", {"targets": ["image.out_proj"]}),
    ("fedprompt", {}),
    ("fedlc", {}),
    ("fedtext", {}),
    ("fedfft", {}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_what_a_step_keeps_is_at_most_the_estimate_and_not_much_less(clip: Clip, name: str, options: dict[str, object]) -> None:
    """All memory that autograd holds at the end of a forward pass of three clients, but for what was there before."""
    method, batch = build(clip, name, **options), 8
    params = method.pack(method.init(np.random.default_rng(0))).repeat(3, 1)
    shape = (3, batch, clip.model.visual.output_dim) if method.sees == "features" else (3, batch, 3, 32, 32)
    inputs, labels, storages = torch.randn(shape), torch.zeros(3, batch, dtype=torch.int64), {}
    before = {tensor.untyped_storage().data_ptr() for tensor in (*clip.model.parameters(), *clip.model.buffers(), params, inputs)}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        tensors = method.unpack(params.requires_grad_())
        scores = method.logits(tensors, method.classes(tensors, None), inputs, None)
        loss = contrastive(scores, labels, torch.ones(3, batch, dtype=torch.bool))
        kept = sum(num_bytes for place, num_bytes in storages.items() if place not in before)
    assert loss.requires_grad
    estimate = 3 * load_of(clip, method, ClientConfig(batch_size=batch), 10).kept_bytes
    assert 0.2 * estimate < kept < estimate, kept / estimate


def test_who_never_encodes_captions_keeps_features_and_scores_alone(clip: Clip) -> None:
    """So that a group of a crowd, whose gradients are products with one Jacobian, may be larger."""
    method, config = build(clip, "flora"), ClientConfig(batch_size=8)
    whole, part = load_of(clip, method, config, 10), load_of(clip, method, config, 10, encodes=False)
    assert part.activation_bytes == 0 < whole.activation_bytes
    assert part.kept_bytes == 4 * 8 * (4 * 128 + 8 * 10)
    assert choose(10_000, part, PLENTY).clients > choose(10_000, whole, PLENTY).clients
