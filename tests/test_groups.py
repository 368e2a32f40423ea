"""A client's numbers are its own, whoever trains beside it and on however many threads: ranks may group clients as they like."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import open_clip
import pytest
import torch

from flora_hpc import building, cohort, configfile, experiment, firststep, trainer
from flora_hpc.clip.attention import unfuse
from flora_hpc.clip.load import Clip, load
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.devices import Room
from flora_hpc.config import ClientConfig, Config
from flora_hpc.data.holdings import Holdings, Partition
from flora_hpc.data.images import Dataset, Ints
from flora_hpc.data.inputs import Features, Inputs
from flora_hpc.groups import AT_ONCE, parts_of
from flora_hpc.methods._lora import Target
from flora_hpc.methods._method import Method, Setting
from flora_hpc.methods.flora import Options, build
from tests.conftest import CONTEXT, END, ROOT, setting, small_model

NUM_CLIENTS, BATCH = 7, 8
BASE = [
    "model.name=flora-tiny", "data={name: digits}", "client.lr=0.01", "client.epochs=2", f"client.batch_size={BATCH}",
    f"partition={{name: quantity, num_clients: {NUM_CLIENTS}, examples_per_client: 9}}",
]  # fmt: skip
TEXT = [f"text.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj", "mlp", "head")]
METHODS: dict[str, list[str]] = {
    **{target: [f"method={{name: flora, targets: [{target}]}}"] for target in TEXT},
    "contrastive": ["method.name=flora", "client.loss=contrastive"],
    "dropout": ["method={name: flora, targets: [text.q_proj, text.mlp], dropout: 0.3}"],
    "image": ["method={name: flora, targets: [image.q_proj, image.mlp, image.head]}"],
    **{name: [f"method.name={name}"] for name in ("feddylora", "fedprompt", "fedlc", "fedca", "fedaa")},
    "dual_lora": ["method={name: dual_lora, targets: [text.out_proj, text.mlp]}"],
    "fed_sb": ["method={name: fed_sb, targets: [text.out_proj, text.mlp]}"],
    **{name: [f"method.name={name}", "client.epochs=1"] for name in ("fedvmlc", "fedtext", "fedfft")},
}
SLOW = ("image", "fedvmlc", "fedtext", "fedfft")


@dataclass(frozen=True)
class Clients:
    """Clients, what they see, and an adapter that is not where training begins."""

    method: Method
    holdings: Holdings
    config: ClientConfig
    inputs: Inputs
    labels: torch.Tensor
    adapter: torch.Tensor
    by_jacobian: bool = False

    def updates(self, groups: list[Ints], num_threads: int) -> dict[int, tuple[bytes, float]]:
        """Each client's update and loss, to the last bit."""
        method, updates = self.method, {}
        torch.set_num_threads(num_threads)
        first = firststep.make(method, self.adapter, Serial()) if self.by_jacobian else None
        for members in groups:
            batches = trainer.make_batches(members, self.holdings, self.config, 0, 1, self.unit)
            mask = method.portions.mask(members) if method.portions else None
            task = trainer.Task(method, self.inputs, self.labels, self.config)
            result = trainer.train(task, trainer.Start(self.adapter, mask), batches, first)
            for client, update, loss in zip(members.tolist(), result.updates, result.losses.tolist(), strict=True):
                updates[client] = (update.numpy().tobytes(), loss)
        return updates

    @property
    def unit(self) -> int:
        return trainer.padding_multiple(self.method, self.config, self.holdings.largest)

    def groups(self, clients: Ints, most: int, num_ranks: int) -> list[Ints]:
        """Groups of `clients` as that many ranks would make them."""
        costs = trainer.filled_up(self.holdings.sizes(clients), self.config, self.unit)
        grouping = cohort.Grouping(most, alike=self.method.per_example)
        by_rank = cohort.groups_of_ranks(clients, costs, grouping, num_ranks, "static")
        return [group for local_groups in by_rank for group in local_groups]

    def assert_bits_are_their_own(self, times: int = 4) -> None:
        """Each client alone on one thread, against random groups of some of them on one to three threads."""
        everybody, rng = np.arange(self.holdings.num_clients), np.random.default_rng(0)
        alone = self.updates(self.groups(everybody, 1, 1), 1)
        assert sum(any(update) for update, _ in alone.values()) > 1, "these clients train nothing"
        tried = [(self.groups(everybody, 100, 1), 2), (self.groups(everybody, 100, 1), 1)]
        for number in range(times):
            some = rng.permutation(everybody)[: rng.integers(2, len(everybody) + 1)]
            tried.append((self.groups(some, int(rng.integers(2, 8)), int(rng.integers(1, 4))), number % 3 + 1))
        for groups, num_threads in tried:
            updates = self.updates(groups, num_threads)
            differing = [client for client, numbers in updates.items() if numbers != alone[client]]
            assert differing == [], f"of groups {[group.tolist() for group in groups]} on {num_threads} threads"
            assert len(updates) > 1


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> tuple[Config, Dataset, Clip]:
    config, _ = configfile.load(ROOT / "configs" / "quickstart.yaml", BASE)
    return config, experiment.dataset(config), load(config.model, 0, torch.device("cpu"))


def moved(method: Method) -> torch.Tensor:
    adapter = method.pack(method.init(np.random.default_rng(0)))
    return adapter + torch.randn(len(adapter), generator=torch.Generator().manual_seed(1)) * 0.02


def made_of(digits: tuple[Config, Dataset, Clip], name: str) -> Clients:
    config, _ = configfile.load(ROOT / "configs" / "quickstart.yaml", [*BASE, *METHODS[name]])
    _, dataset, clip = digits
    setup = building.make_setup(config, dataset, deepcopy(clip), torch.device("cpu"), Room(2**40, gpu=False))
    shape = (len(dataset.images), 3, 32, 32) if setup.method.sees == "pixels" else (len(dataset.images), 128)
    inputs = Features(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    return Clients(setup.method, setup.holdings, setup.client, inputs, setup.labels, moved(setup.method))


@pytest.mark.parametrize("name", METHODS)
def test_a_clients_bits_do_not_depend_on_who_trains_beside_it(name: str, digits: tuple[Config, Dataset, Clip]) -> None:
    """With every method and loss, on the bundled model. Clients have 1 to some 20 examples.

    Alone, a client computes all by itself; in a group, what is alike in the first step is computed once.
    """
    made_of(digits, name).assert_bits_are_their_own(1 if name in SLOW else 3)


@pytest.mark.parametrize("target", ["text.q_proj", "text.mlp"])
def test_nor_where_all_have_one_jacobian(target: str, digits: tuple[Config, Dataset, Clip]) -> None:
    replace(made_of(digits, target), by_jacobian=True).assert_bits_are_their_own(1)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("loss", ["contrastive", "classification"])
def test_nor_where_every_image_has_a_caption_of_its_own(dropout: float, loss: str) -> None:
    """Of some clients all captions are short, of others long."""
    lengths = [3] * 20 + [11] * 6 + [5] * 14
    tokens = torch.tensor([[1, *range(2 + i % 9, i % 9 + n), END] + [0] * (CONTEXT - n) for i, n in enumerate(lengths)])
    setting_of_data = replace(setting(small_model(), tokens), paired=True)
    method = build(Options(name="flora", targets=("text.q_proj", "text.mlp"), dropout=dropout), setting_of_data)
    method = replace(method, paired=True)
    holders = Partition(np.arange(40), np.array([0, 14, 20, 26, 31, 40]))
    features = Features(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)))
    config = ClientConfig(batch_size=10, lr=0.01, epochs=2, loss=loss)
    Clients(method, holders, config, features, torch.arange(40), moved(method)).assert_bits_are_their_own(8)


@pytest.mark.parametrize("targets", [("text.q_proj", "text.c_fc"), ("text.out_proj",)])
def test_nor_at_the_size_of_a_vit_b_32(targets: tuple[Target, ...]) -> None:
    """One block of its text tower, ten captions, batches of 128."""
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(embed_dim=512, vision_cfg=vision, text_cfg=text).eval().requires_grad_(False)
    clip = Clip(unfuse(model), lambda image: image, open_clip.get_tokenizer("ViT-B-32"), "one block")
    names = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "lorry")
    starts = np.array([0, 300, 310, 438, 700, 828, 829])
    holders, labels = Partition(np.arange(829), starts), np.arange(829) % 10
    setting_of_data = Setting(clip, names, tuple(f"a photo of a {name}." for name in names), holders, labels)
    method = build(Options(name="flora", targets=targets), setting_of_data)
    features = Features(torch.randn(829, 512, generator=torch.Generator().manual_seed(0)))
    config = ClientConfig(lr=0.01)
    Clients(method, holders, config, features, torch.from_numpy(labels), moved(method)).assert_bits_are_their_own(3)


# --- whose batches are made at once


def test_groups_get_their_batches_at_once_up_to_a_number_of_examples() -> None:
    """Groups of two, two and one clients. A client may have a quarter of AT_ONCE: two groups, then one."""
    groups = [np.array([0, 1]), np.array([2, 3]), np.array([4])]
    assert [len(part) for part in parts_of(groups, AT_ONCE // 4)] == [2, 1]
    assert [len(part) for part in parts_of(groups, AT_ONCE + 1)] == [1, 1, 1]
    assert list(parts_of([], 100)) == []


def test_a_group_is_drawn_from_a_counter_only_when_its_turn_comes() -> None:
    """Another rank may take the next one."""
    drawn: list[int] = []

    def counter() -> Iterator[Ints]:
        for number in range(3):
            drawn.append(number)
            yield np.array([number])

    parts = parts_of(counter(), 1)
    assert [len(next(parts)), drawn] == [1, [0]]
    assert [len(next(parts)), drawn] == [1, [0, 1]]
