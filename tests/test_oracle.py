"""Every method equals a direct PyTorch computation: one client at a time, every image, full-length captions, no fast path."""

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flora_hpc import firststep, plugins, trainer
from flora_hpc.bench import plain
from flora_hpc.clip.attention import unfuse
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.config import ClientConfig
from flora_hpc.data.holdings import Partition
from flora_hpc.data.inputs import Features
from flora_hpc.methods._method import Method, Setting
from tests.conftest import END, small_model
from tests.conftest import setting as make_setting

NUM_CLIENTS, ALPHA, CONTEXT_LENGTH = 3, 4.0, 2
TEXT = ("text.q_proj", "text.k_proj", "text.v_proj", "text.out_proj", "text.c_fc", "text.c_proj", "text.head")
IMAGE = tuple(target.replace("text", "image") for target in TEXT)
PROMPTS = torch.tensor([[1, 7, 8, *name, END] + [0] * (8 - len(name)) for name in ([5, 6], [5, 9], [3, 6, 2], [11], [5, 6])])

NAMES = torch.cat([PROMPTS[:, :1], PROMPTS[:, 3:], torch.zeros(5, 2, dtype=torch.int64)], 1)
TOKENS = {"two words": torch.tensor([[1, 7, 8, END] + [0] * 8]), "two words name 0.": PROMPTS, "name 0.": NAMES}


class Case:
    """A method on a small CLIP, its three clients with tensors of their own, and five random images for each of them."""

    def __init__(self, name: str, captions: torch.Tensor, dtype: torch.dtype = torch.float64, **options: object) -> None:
        self.fused = small_model(dtype=dtype)  # open_clip's own model, untouched
        self.tokens = captions
        self.setting: Setting = make_setting(deepcopy(self.fused), captions, TOKENS)
        self.model = self.setting.clip.model
        module = plugins.member("methods", name)
        self.method: Method = module.build(module.Options(name=name, **options), self.setting)
        generator = torch.Generator().manual_seed(1)
        start = {key: value.detach().to(dtype) for key, value in self.method.init(np.random.default_rng(0)).items()}
        flat = torch.cat([value.flatten() for value in start.values()]) if start else torch.zeros(0, dtype=dtype)
        self.params = flat + torch.randn(NUM_CLIENTS, len(flat), generator=generator).to(dtype) * 0.1
        self.pixels = torch.randn(NUM_CLIENTS, 5, 3, 8, 8, generator=generator).to(dtype)
        self.labels = torch.randint(0, len(captions), (NUM_CLIENTS, 5), generator=generator)

    @property
    def inputs(self) -> torch.Tensor:
        if self.method.sees == "pixels":
            return self.pixels
        return torch.stack([self.fused.encode_image(pixels) for pixels in self.pixels])

    def tensors(self, client: int) -> dict[str, torch.Tensor]:
        return self.method.unpack(self.params[client])

    def gradients(self, loss: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (num_clients,) and gradients (num_clients, num_params) of the method."""
        leaf = self.params.clone().requires_grad_()
        tensors = self.method.unpack(leaf)
        scores = self.method.logits(tensors, self.method.classes(tensors, None), self.inputs, None)
        present = torch.ones(NUM_CLIENTS, 5, dtype=torch.bool)
        values = trainer.LOSSES[loss](scores, self.labels, present)
        return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]


def direct_loss(images: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    """The loss from scaled image features and class vectors, with the batch x batch matrix written out."""
    if kind == "classification":
        return F.cross_entropy(images @ classes.T, labels)
    scores, targets = images @ classes[labels].T, torch.arange(len(labels))
    return (F.cross_entropy(scores, targets) + F.cross_entropy(scores.T, targets)) / 2


Direct = Callable[[Case, int, dict[str, torch.Tensor], str], torch.Tensor]


def with_features(images: Callable[[torch.Tensor, dict[str, torch.Tensor]], torch.Tensor]) -> Direct:
    """A method that changes nothing but the image feature."""

    def direct(case: Case, client: int, leaves: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
        features = F.normalize(images(case.fused.encode_image(case.pixels[client]), leaves), dim=-1)
        text = case.fused.encode_text(case.tokens, normalize=True)
        return direct_loss(case.fused.logit_scale.exp() * features, text, case.labels[client], kind)

    return direct


def clip_adapter(features: torch.Tensor, leaves: dict[str, torch.Tensor]) -> torch.Tensor:
    first, second = leaves.values()
    net = nn.Sequential(nn.Linear(8, 2, bias=False), nn.ReLU(), nn.Linear(2, 8, bias=False), nn.ReLU())
    adapted = torch.func.functional_call(net, {"0.weight": first, "2.weight": second}, features)
    return 0.2 * adapted + 0.8 * features


def attention_adapter(features: torch.Tensor, leaves: dict[str, torch.Tensor]) -> torch.Tensor:
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Softmax(dim=1))
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    attention: torch.Tensor = torch.func.functional_call(net, dict(zip(names, leaves.values(), strict=True)), features)
    return attention * features


def linear_classifier(case: Case, client: int, leaves: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    images = F.normalize(case.fused.encode_image(case.pixels[client]), dim=-1)
    return classifier_loss(images, leaves, case.labels[client], kind)


def classifier_loss(images: torch.Tensor, leaves: dict[str, torch.Tensor], labels: torch.Tensor, kind: str) -> torch.Tensor:
    ones = torch.ones(len(images), 1, dtype=images.dtype)
    classes = torch.cat([leaves["classifier.weight"], leaves["classifier.bias"][:, None]], 1)
    return direct_loss(torch.cat([images, ones], 1), classes, labels, kind)


def own_weights(case: Case, leaves: dict[str, torch.Tensor]) -> open_clip.CLIP:
    """A model whose parameters are the client's leaves, through the modules' own code."""
    model = deepcopy(case.model)
    for name, leaf in leaves.items():
        owner, _, last = name.rpartition(".")
        if not name.startswith("classifier"):
            module = model.get_submodule(owner)
            delattr(module, last)
            setattr(module, last, leaf)
    return model


def full(case: Case, client: int, leaves: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    model = own_weights(case, leaves)
    images = model.encode_image(case.pixels[client], normalize=True)
    return direct_loss(model.logit_scale.exp() * images, model.encode_text(case.tokens, normalize=True), case.labels[client], kind)


def image_tower_and_classifier(case: Case, client: int, leaves: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    images = own_weights(case, leaves).encode_image(case.pixels[client], normalize=True)
    return classifier_loss(images, leaves, case.labels[client], kind)


def prompts(case: Case, client: int, leaves: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    model = plain.Prompted(case.fused, leaves["context"])
    return plain.loss_of_batch(model, case.pixels[client], case.labels[client], PROMPTS, kind)


def peft_lora(case: Case, client: int, leaves: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    """peft's own layers in the model's own code; a client of lower rank gets an adapter of that rank."""
    rank = case.ranks[client] if hasattr(case, "ranks") else None
    held = {name: (t[:rank] if name.endswith("A") else t[:, :rank]) for name, t in leaves.items()}
    wrapped = plain.attach(deepcopy(case.model), {name: t.detach() for name, t in held.items()}, ALPHA)
    model = wrapped.base_model.model
    for name, tensor in held.items():
        module = model.get_submodule(f"{name}.default")
        del module.weight
        module.weight = tensor
    return plain.loss_of_batch(model, case.pixels[client], case.labels[client], case.tokens, kind)


def two_adapters(case: Case, client: int, leaves: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    """Each layer of the model's own code adds the products of both adapters, one after the other."""
    model = deepcopy(case.model)
    for name, down in leaves.items():
        if name.endswith("_A"):
            layer, up = model.get_submodule(name.rpartition(".")[0]), leaves[f"{name.removesuffix('A')}B"]
            layer.register_forward_hook(lambda layer, inputs, output, down=down, up=up: output + ALPHA * inputs[0] @ down.T @ up.T)
    return plain.loss_of_batch(model, case.pixels[client], case.labels[client], case.tokens, kind)


def three_factors(case: Case, client: int, leaves: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    """Each layer of the model's own code adds the product B R A x, one factor after the other."""
    model = deepcopy(case.model)
    for name, middle in leaves.items():
        if name.endswith("_R"):
            layer, down, up = name.rpartition(".")[0], leaves[f"{name[:-1]}A"], leaves[f"{name[:-1]}B"]
            model.get_submodule(layer).register_forward_hook(
                lambda layer, inputs, output, down=down, middle=middle, up=up: output + ALPHA * inputs[0] @ down.T @ middle.T @ up.T
            )
    return plain.loss_of_batch(model, case.pixels[client], case.labels[client], case.tokens, kind)


DIRECT: dict[str, Direct] = {
    "flora": peft_lora,
    "feddylora": peft_lora,
    "dual_lora": two_adapters,
    "fed_sb": three_factors,
    "fedlc": linear_classifier,
    "fedaa": with_features(attention_adapter),
    "fedca": with_features(clip_adapter),
    "fedprompt": prompts,
    "fedtext": full,
    "fedfft": full,
    "fedvmlc": image_tower_and_classifier,
}
OPTIONS: dict[str, dict[str, object]] = {
    "flora": {"alpha": ALPHA},
    "feddylora": {"alpha": ALPHA, "min_rank": 1, "max_rank": 3},
    "dual_lora": {"alpha": ALPHA, "private_rank": 3, "targets": ("text.out_proj", "text.mlp", "image.q_proj")},
    "fed_sb": {"alpha": ALPHA, "rank": 3, "targets": ("text.out_proj", "text.mlp", "image.q_proj")},
    "fedprompt": {"context": "two words"},
}
LORA = [("flora", {"alpha": ALPHA, "targets": targets}) for targets in (*((t,) for t in TEXT + IMAGE), TEXT, IMAGE, TEXT + IMAGE)]
CASES = [(name, OPTIONS.get(name, {})) for name in DIRECT] + LORA


def test_every_method_that_trains_has_a_direct_computation_to_compare_with() -> None:
    assert set(DIRECT) == set(plugins.members("methods")) - {"zeroshot"}


@pytest.mark.parametrize(
    ("name", "options"), CASES, ids=lambda value: value if isinstance(value, str) else str(value.get("targets", ""))
)
@pytest.mark.parametrize("kind", ["contrastive", "classification"])
def test_gradients_equal_those_of_a_direct_computation(
    captions: torch.Tensor, name: str, options: dict[str, object], kind: str
) -> None:
    """In float64, to 1e-8 of the largest gradient of a tensor, for every client under tensors of its own."""
    case = Case(name, captions, **options)
    if case.method.portions is not None:
        held = case.method.portions.mask(np.arange(NUM_CLIENTS))
        case.params *= held
        case.ranks = [3, 2, 1]  # type: ignore[attr-defined]
    values, gradients = case.gradients(kind)
    for client in range(NUM_CLIENTS):
        leaves = {key: value.detach().clone().requires_grad_() for key, value in case.tensors(client).items()}
        value = DIRECT[name](case, client, leaves, kind)
        torch.testing.assert_close(values[client], value.detach(), rtol=1e-10, atol=1e-12)
        wanted = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
        for key, mine, direct in zip(leaves, case.method.unpack(gradients[client]).values(), wanted, strict=True):
            direct = direct if case.method.portions is None else direct * case.method.unpack(held[client])[key]
            mine = mine if case.method.portions is None else mine * case.method.unpack(held[client])[key]
            assert direct.abs().max() > 1e-9 or "k_proj.bias" in key, f"{key} takes part"  # softmax ignores a key's bias
            torch.testing.assert_close(mine, direct, rtol=1e-8, atol=1e-8 * max(1e-3, float(direct.abs().max())))


SHARED = [(name, options) for name, options in CASES if "image" not in str(options) and name in ("flora", "fedprompt", "fedtext")]


@pytest.mark.parametrize("by_jacobian", [False, True])
@pytest.mark.parametrize(("name", "options"), SHARED, ids=str)
@pytest.mark.parametrize("kind", ["contrastive", "classification"])
def test_first_gradients_from_one_adapter_equal_those_of_a_direct_computation(
    captions: torch.Tensor, name: str, options: dict[str, object], kind: str, by_jacobian: bool
) -> None:
    """In float64, to 1e-8, of an adapter that is not where training begins; each client has images of its own."""
    case = Case(name, captions, **options)
    config = ClientConfig(batch_size=5, optimizer="sgd", lr=1.0, weight_decay=0.0, loss=kind, shuffle=False)
    first = firststep.make(case.method, case.params[0], Serial()) if by_jacobian else None
    batches = trainer.make_batches(np.arange(NUM_CLIENTS), Partition(np.arange(15), np.arange(0, 16, 5)), config, 0, 1)
    features, labels = Features(case.inputs.flatten(0, 1)), case.labels.flatten()
    inputs = lambda rows: features.values[rows]  # noqa: E731 -- Features would round
    found = -trainer.train(trainer.Task(case.method, inputs, labels, config), trainer.Start(case.params[0]), batches, first).updates
    case.params = case.params[:1].repeat(NUM_CLIENTS, 1)
    for client in range(NUM_CLIENTS):
        leaves = {key: value.detach().clone().requires_grad_() for key, value in case.tensors(client).items()}
        value = DIRECT[name](case, client, leaves, kind)
        wanted = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
        for mine, right in zip(case.method.unpack(found[client]).values(), wanted, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-8, atol=1e-8 * max(1e-3, float(right.abs().max())))


def test_zeroshot_scores_are_those_of_open_clip(captions: torch.Tensor) -> None:
    case = Case("zeroshot", captions)
    scores = case.method.logits({}, case.method.classes({}, None), case.inputs, None)
    image, text = case.fused.encode_image(case.pixels[0], normalize=True), case.fused.encode_text(captions, normalize=True)
    torch.testing.assert_close(scores[0], case.fused.logit_scale.exp() * image @ text.T, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("targets", [*((target,) for target in TEXT + IMAGE), TEXT + IMAGE], ids=str)
def test_in_float32_scores_equal_those_of_pefts_own_layers(captions: torch.Tensor, targets: tuple[str, ...]) -> None:
    """To 1e-6 of the features of unit length, for each target alone and all together."""
    case = Case("flora", captions, torch.float32, alpha=ALPHA, targets=targets)
    tensors = case.method.unpack(case.params)
    scores = case.method.logits(tensors, case.method.classes(tensors, None), case.inputs, None)
    for client in range(NUM_CLIENTS):
        model = plain.attach(deepcopy(case.model), case.tensors(client), ALPHA).base_model.model
        images, texts = model.encode_image(case.pixels[client], normalize=True), model.encode_text(captions, normalize=True)
        scale = float(model.logit_scale.exp())
        torch.testing.assert_close(scores[client] / scale, images @ texts.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", ["contrastive", "classification"])
def test_a_group_of_unequal_clients_trains_as_each_does_alone_on_the_plain_path(captions: torch.Tensor, loss: str) -> None:
    """Several epochs of Adam in float32, batches of 3 with short last ones: the same updates and losses to rounding."""
    case = Case("flora", captions, torch.float32, alpha=ALPHA)
    config = ClientConfig(epochs=2, batch_size=3, lr=1e-3, loss=loss)
    pixels, labels = case.pixels.flatten(0, 1), case.labels.flatten()
    batches = trainer.make_batches(np.arange(NUM_CLIENTS), case.setting.holdings, config, 0, 1)
    adapter = case.params[0]
    fast = trainer.train(
        trainer.Task(case.method, Features(case.fused.encode_image(pixels)), labels, config), trainer.Start(adapter), batches
    )
    for client in range(NUM_CLIENTS):
        rows = [batches.examples[step, client][batches.present[step, client]] for step in range(batches.num_steps[client])]
        mine = [(pixels[torch.from_numpy(r)], labels[torch.from_numpy(r)]) for r in rows]
        updates, losses = plain.train_client(case.setting.clip, case.tensors(0), ALPHA, case.tokens, mine, config)
        assert fast.num_steps[client] == len(losses)
        assert fast.losses[client].item() == pytest.approx(np.average(losses, weights=list(map(len, rows))), rel=1e-4)
        wanted = case.method.pack(updates)
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(fast.updates[client], wanted, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("targets", [["text.q_proj", "text.mlp"], ["image.q_proj", "image.head"]], ids=str)
def test_dropout_belongs_to_the_client_and_the_round(captions: torch.Tensor, targets: list[str]) -> None:
    """Whoever trains beside it, a client drops the same; in another round it drops something else; testing drops nothing."""
    case = Case("flora", captions, torch.float32, alpha=ALPHA, dropout=0.5, targets=targets)
    config, features, labels = ClientConfig(batch_size=3, lr=1e-2), Features(case.inputs.flatten(0, 1)), case.labels.flatten()

    def train(clients: list[int], round_number: int = 1) -> torch.Tensor:
        batches = trainer.make_batches(np.array(clients), case.setting.holdings, config, 0, round_number)
        return trainer.train(trainer.Task(case.method, features, labels, config), trainer.Start(case.params[0]), batches).updates[
            -1
        ]

    torch.testing.assert_close(train([0, 1, 2]), train([2]), rtol=1e-4, atol=1e-6)
    assert (train([2], 2) - train([2])).abs().max() > 1e-3
    tensors = case.method.unpack(case.params)
    without = Case("flora", captions, torch.float32, alpha=ALPHA, targets=targets)
    assert case.method.classes(tensors, None).equal(without.method.classes(tensors, None))


@pytest.mark.parametrize("name", [*DIRECT, "zeroshot"])
def test_training_leaves_the_frozen_model_as_it_was(captions: torch.Tensor, name: str) -> None:
    case = Case(name, captions, torch.float32, **OPTIONS.get(name, {}))
    before = {key: tensor.clone() for key, tensor in case.model.state_dict().items()}
    config = ClientConfig(batch_size=4, lr=0.1)
    batches = trainer.make_batches(np.arange(NUM_CLIENTS), case.setting.holdings, config, 0, 1)
    inputs = Features(case.inputs.detach().flatten(0, 1))
    result = trainer.train(trainer.Task(case.method, inputs, case.labels.flatten(), config), trainer.Start(case.params[0]), batches)
    assert result.updates.shape == (NUM_CLIENTS, case.method.num_params)
    assert name == "zeroshot" or (result.updates.abs().amax(1) > 0).all()
    assert all(tensor.equal(before[key]) for key, tensor in case.model.state_dict().items())


def test_a_split_model_is_fused_again_without_loss(captions: torch.Tensor) -> None:
    from flora_hpc.clip.attention import fuse

    model = small_model()
    parted = unfuse(deepcopy(model))
    state = fuse(parted, parted.state_dict())
    assert set(state) == set(model.state_dict())
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
