"""Where adapters may sit, and what is refused."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from pydantic import ValidationError

from flora_hpc import exact, trainer
from flora_hpc.clip.attention import unfuse
from flora_hpc.config import ClientConfig
from flora_hpc.data.holdings import Partition
from flora_hpc.data.inputs import Features
from flora_hpc.errors import UserError
from flora_hpc.methods import feddylora, flora
from flora_hpc.methods._method import Method
from tests.conftest import CONTEXT, VOCABULARY, WIDTH, setting, small_model


def build(captions: torch.Tensor, **options: object) -> Method:
    return flora.build(flora.Options(name="flora", **options), setting(small_model(), captions))


@pytest.mark.parametrize(
    ("targets", "numbers"),
    [
        (["text.out_proj"], 2 * 2 * (16 + 16)),  # two blocks, rank 2
        (["text.q_proj", "text.v_proj"], 2 * 2 * 2 * (16 + 16)),
        (["text.mlp"], 2 * 2 * 2 * (16 + 64)),
        (["text.c_fc", "text.c_proj"], 2 * 2 * 2 * (16 + 64)),
        (["text.head"], 2 * (16 + 8)),
        (["image.head"], 2 * (16 + 8)),
        (["image.k_proj", "text.head"], 2 * 2 * (16 + 16) + 2 * (16 + 8)),
    ],
    ids=str,
)
def test_trained_numbers_by_hand(captions: torch.Tensor, targets: list[str], numbers: int) -> None:
    assert build(captions, targets=targets).num_params == numbers


def test_the_image_tower_is_seen_only_when_it_is_trained(captions: torch.Tensor) -> None:
    assert build(captions, targets=["text.mlp"]).sees == "features"
    assert build(captions, targets=["image.q_proj"]).sees == "pixels"
    assert build(captions, targets=["text.mlp", "image.head"]).sees == "pixels"


def test_the_order_of_targets_does_not_matter(captions: torch.Tensor) -> None:
    one, other = (build(captions, targets=targets) for targets in (["text.q_proj", "image.mlp"], ["image.mlp", "text.q_proj"]))
    assert list(one.shapes) == list(other.shapes)


@pytest.mark.parametrize("targets", [["text.mlp", "text.c_fc"], ["text.q_proj", "text.q_proj"], ["image.c_proj", "image.mlp"]])
def test_a_layer_named_twice_is_refused(targets: list[str]) -> None:
    with pytest.raises(ValidationError, match="names a layer twice"):
        flora.Options(name="flora", targets=targets)


def test_a_target_that_the_model_lacks_is_refused(captions: torch.Tensor) -> None:
    text = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": WIDTH, "heads": 2, "layers": 2}
    vision = {"image_size": 64, "layers": (1, 1, 1, 1), "width": 8, "patch_size": None}
    model = unfuse(open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text).eval())
    with pytest.raises(UserError, match=r"method.targets: small has no image.q_proj; its image tower is built otherwise"):
        flora.build(flora.Options(name="flora", targets=["text.mlp", "image.q_proj"]), setting(model, captions))


def test_peft_starts_a_as_it_would(captions: torch.Tensor) -> None:
    values = build(captions, init="kaiming", rank=8).init(np.random.default_rng(0))
    down = torch.cat([value.flatten() for name, value in values.items() if name.endswith("lora_A")])
    assert down.abs().max() <= 0.25  # 1 / sqrt(16)
    assert down.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.1)


# --- clients of different rank


def dynamic(captions: torch.Tensor, **options: object) -> Method:
    module = feddylora.Options(name="feddylora", **{"min_rank": 1, "max_rank": 8} | options)
    return feddylora.build(module, setting(small_model(), captions))


def ranks(captions: torch.Tensor, **options: object) -> list[int]:
    """The clients hold 8, 5 and 2 examples with labels 0, 1, 2, 3, 4, 0, 1, ... in order."""
    case = setting(small_model(), captions)
    chosen = feddylora.Options(name="feddylora", **{"min_rank": 1, "max_rank": 8} | options)
    return feddylora.choose_ranks(chosen, case.holdings, case.labels, 5).tolist()


def test_ranks_by_share_by_hand(captions: torch.Tensor) -> None:
    """x is 8/15, 5/15, 2/15: 1 + 7 x is 4.73, 3.33, 1.93; stretched over 0..1 it is 1, 0.5, 0: 8, 4.5, 1."""
    assert ranks(captions, normalized=False) == [5, 3, 2]
    assert ranks(captions) == [8, 4, 1]


def test_ranks_by_divergence_by_hand(captions: torch.Tensor) -> None:
    """The second client holds every class once, as all clients together do: divergence 0. The third holds two classes of five:
    ln 2.5 = 0.916. The first holds 2, 2, 2, 1, 1 of 8: 0.75 ln 1.25 + 0.25 ln 0.625 = 0.0499."""
    assert feddylora.divergences(setting(small_model(), captions).holdings, np.arange(15) % 5, 5) == pytest.approx(
        [0.75 * np.log(1.25) + 0.25 * np.log(0.625), 0, np.log(2.5)]
    )
    assert ranks(captions, by="divergence") == [1, 1, 8]


def test_equal_clients_get_the_rank_in_the_middle(captions: torch.Tensor) -> None:
    assert ranks(captions, min_rank=3, max_rank=7, by="share", normalized=True)[1] == 5
    case = feddylora.Options(name="feddylora", min_rank=2, max_rank=6)
    assert feddylora.choose_ranks(case, Partition(np.arange(4), np.array([0, 2, 4])), np.zeros(4, np.int64), 1).tolist() == [4, 4]


def test_a_client_holds_the_first_rows_of_a_and_columns_of_b(captions: torch.Tensor) -> None:
    method = dynamic(captions)
    assert method.portions is not None
    masks = method.unpack(method.portions.mask(np.array([1, 2])))
    for name, part in masks.items():
        for client, rank in enumerate((4, 1)):
            by_rank = part[client] if name.endswith("lora_A") else part[client].T
            assert by_rank[:rank].all()
            assert not by_rank[rank:].any()
    assert method.bytes_of(np.array([0, 1, 2])).tolist() == [4 * 2 * rank * 32 for rank in (8, 4, 1)]


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"method.max_rank: 2 is smaller than method.min_rank, 3; raise it"):
        feddylora.Options(name="feddylora", min_rank=3, max_rank=2)


def test_more_clients_than_can_be_looked_at_are_refused() -> None:
    with pytest.raises(UserError, match="1,000,000,000 are more than 100,000"):
        feddylora.refuse_many(10**9)


def by_column(captions: torch.Tensor, texts: list[str], **options: object) -> list[int]:
    case = replace(setting(small_model(), captions), column=lambda name, key: texts)
    chosen = feddylora.Options(name="feddylora", by="column", column="device", **options)
    method = feddylora.build(chosen, case)
    assert method.portions is not None
    assert method.portions.ranks is not None
    return method.portions.ranks(np.arange(3)).tolist()


def test_ranks_by_column(captions: torch.Tensor) -> None:
    assert by_column(captions, ["8", "1", "04"]) == [8, 1, 4]
    assert by_column(captions, ["phone", "server", "phone"], ranks={"phone": 2, "server": 6}) == [2, 6, 2]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["8", "9", "1"], {}, "client 1 has the rank 9 in column 'device'; give it a whole number from method.min_rank, 1, to"),
        (["8", "two", "1"], {}, "client 1 has 'two' in column 'device'; give it a whole number"),
        (
            ["phone", "phone", "tv"],
            {"ranks": {"phone": 2}},
            "client 2 has 'tv' in column 'device', but ranks are for phone; add",
        ),
        (["phone"] * 3, {"ranks": {"phone": 1}, "min_rank": 2}, "client 0 has the rank 1 in column"),
    ],
)
def test_columns_without_a_rank_are_refused(
    captions: torch.Tensor, texts: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        by_column(captions, texts, **options)


@pytest.mark.parametrize("options", [{"by": "column"}, {"column": "device"}, {"ranks": {"phone": 2}}])
def test_halves_of_the_options_of_a_column_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"method\.(column|ranks)"):
        feddylora.Options(name="feddylora", **options)


def test_a_client_of_lower_rank_trains_what_flora_of_that_rank_would(captions: torch.Tensor) -> None:
    """It starts from the rows it holds, ends with zeros elsewhere, and its step is that of a flora client of its rank."""
    case = setting(small_model(), captions)
    method, config = dynamic(captions, alpha=2.0), ClientConfig(batch_size=4, lr=0.01, loss="classification")
    assert method.portions is not None
    generator = torch.Generator().manual_seed(0)
    adapter = torch.randn(method.num_params, generator=generator) * 0.2
    features, labels = torch.randn(15, 8, generator=generator), torch.from_numpy(case.labels)
    for client, rank in enumerate((8, 4, 1)):
        batches = trainer.make_batches(np.array([client]), case.holdings, config, 0, 1)
        mask = method.portions.mask(np.array([client]))
        result = trainer.train(trainer.Task(method, Features(features), labels, config), trainer.Start(adapter, mask), batches)
        end = method.unpack(adapter + result.updates[0])
        alone = build(captions, rank=rank, alpha=2.0)
        first = {name: t[:rank] if name.endswith("A") else t[:, :rank] for name, t in method.unpack(adapter).items()}
        other = trainer.train(trainer.Task(alone, Features(features), labels, config), trainer.Start(alone.pack(first)), batches)
        expected = alone.unpack(alone.pack(first) + other.updates[0])
        for name, tensor in end.items():
            first_ranks, rest = (tensor[:rank], tensor[rank:]) if name.endswith("A") else (tensor[:, :rank], tensor[:, rank:])
            torch.testing.assert_close(first_ranks, expected[name], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(rest, torch.zeros_like(rest), rtol=0, atol=1e-7)
        trained = exact.norms(result.updates, mask)
        torch.testing.assert_close(trained, other.updates.double().norm(dim=1), rtol=1e-3, atol=1e-6)
