"""Where every image has a caption of its own, a step computes the captions of its batch: the same numbers as with all of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from flora_hpc import plugins, trainer
from flora_hpc.clip import captions as captions_module
from flora_hpc.clip import text
from flora_hpc.clip.captions import OwnCaptions
from flora_hpc.clip.text import TextTower
from flora_hpc.config import ClientConfig
from flora_hpc.data.holdings import Partition
from flora_hpc.errors import UserError
from flora_hpc.losses import contrastive
from flora_hpc.methods._method import Method
from flora_hpc.trainer import classes_and_targets
from tests.clip.test_text import TARGETS, random_adapters
from tests.conftest import setting, small_model

LABELS = torch.tensor([[3, 0, 0, 4], [1, 2, 4, 3], [0, 0, 0, 0]])  # captions of four images of three clients


def test_all_captions_are_those_of_open_clip(
    split_model: open_clip.CLIP, captions: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = split_model.encode_text(captions, normalize=True)
    torch.testing.assert_close(OwnCaptions(split_model, captions)()[0], expected, rtol=1e-11, atol=1e-11)
    monkeypatch.setattr(captions_module, "AT_ONCE", 2)
    torch.testing.assert_close(OwnCaptions(split_model, captions)()[0], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("reason", [None, "the tower is another one"])
def test_each_client_gets_its_own_captions_under_its_own_adapters(
    split_model: open_clip.CLIP, captions: torch.Tensor, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that the tree gives for all captions; also through the model's own code, at full length."""
    adapters = random_adapters(split_model, TARGETS, num_clients=3)
    everything = TextTower(split_model, captions)(adapters)
    monkeypatch.setattr(captions_module, "why_not", lambda model: reason)
    features = OwnCaptions(split_model, captions)(adapters, caption_rows=LABELS)
    assert features.shape == (3, 4, 8)
    for client, labels in enumerate(LABELS):
        torch.testing.assert_close(features[client], everything[client, labels], rtol=1e-11, atol=1e-11)


def test_as_many_positions_are_computed_as_the_longest_of_all_captions_needs(
    split_model: open_clip.CLIP, captions: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower, lengths = OwnCaptions(split_model, captions), []
    assert tower.caption_positions == 5
    monkeypatch.setattr(captions_module, "run_blocks", lambda parts, layers, x, lines: lengths.append((x.shape[1], lines.length)))
    tower(caption_rows=torch.tensor([[3, 3]]))  # tokens 1, 2 and the end
    tower(caption_rows=torch.tensor([[3, 1]]))
    assert lengths == [(10, 5), (10, 5)], "shapes must not depend on what lies beside a client's captions"


METHODS = {
    "flora": {"targets": ("text.out_proj", "text.q_proj", "text.mlp", "text.head")},
    "feddylora": {},
    "fedtext": {},
    "fedaa": {},
    "fedca": {},
    "zeroshot": {},
    "images": {"name": "flora", "targets": ("image.out_proj",)},
}


@pytest.mark.parametrize("name", METHODS)
def test_losses_and_gradients_are_those_with_all_captions(captions: torch.Tensor, name: str) -> None:
    """The contrastive loss needs the captions of the batch and no others, so leaving them out changes nothing."""
    closed, paired = (build(name, captions, paired) for paired in (False, True))
    generator = torch.Generator().manual_seed(0)
    shape = (3, 4, 3, 8, 8) if closed.sees == "pixels" else (3, 4, 8)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    start = torch.randn(3, closed.num_params, generator=generator, dtype=torch.float64) * 0.3
    assert paired.shapes == closed.shapes
    results = []
    for method in (closed, paired):
        leaf = start.clone().requires_grad_()
        tensors = method.unpack(leaf)
        classes, targets = classes_and_targets(method, tensors, None, LABELS)
        scores = method.logits(tensors, classes, inputs, None).expand(3, -1, -1)
        assert scores.shape == ((3, 4, 5) if method is closed else (3, 4, 4))
        loss = contrastive(scores, targets, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool())
        gradient = torch.autograd.grad(loss.sum(), leaf)[0] if closed.num_params else torch.empty(0)
        results.append((loss.detach(), gradient))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-8, atol=1e-10)
    assert closed.num_params == 0 or float(results[0][1].abs().max()) > 1e-6


def build(name: str, captions: torch.Tensor, paired: bool) -> Method:
    options: dict[str, Any] = {"name": name} | METHODS.get(name, {})
    member = plugins.member("methods", options["name"])
    paired_setting = replace(setting(small_model(dtype=torch.float64), captions), paired=paired)
    return replace(member.build(member.Options(**options), paired_setting), paired=paired)


@pytest.mark.parametrize("name", ["fedlc", "fedvmlc", "fedprompt"])
def test_methods_that_learn_classes_are_refused(captions: torch.Tensor, name: str) -> None:
    with pytest.raises(UserError, match=f"method.name: {name} learns something of each class, but .* take flora"):
        build(name, captions, paired=True)


def test_the_tree_is_not_built(captions: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would need memory in the square of its size."""
    monkeypatch.setattr(text, "build_trie", lambda tokens: pytest.fail("a tree of all captions"))
    assert build("flora", captions, paired=True).costs.caption_positions == 5


@pytest.mark.parametrize("loss", ["contrastive", "classification"])
def test_a_client_with_a_short_batch_trains_as_it_would_alone(captions: torch.Tensor, loss: str) -> None:
    """What fills up its batch in a group is no caption that competes."""
    method = build("flora", captions, paired=True)
    features = torch.randn(15, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, config = torch.arange(15) % 5, ClientConfig(batch_size=8, lr=0.01, loss=loss, shuffle=False)
    shards = Partition(np.arange(15), np.array([0, 5, 8, 10]))
    start = torch.randn(method.num_params, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.3

    def train(*clients: int) -> trainer.Trained:
        batches = trainer.make_batches(np.array(clients), shards, config, 0, 1)
        return trainer.train(trainer.Task(method, lambda rows: features[rows], labels, config), trainer.Start(start), batches)

    together = train(0, 1, 2)
    for place, client in enumerate((0, 1, 2)):
        alone = train(client)
        torch.testing.assert_close(together.losses[place], alone.losses[0])
        torch.testing.assert_close(together.updates[place], alone.updates[0], rtol=1e-6, atol=1e-9)
