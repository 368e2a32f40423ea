"""Every fast path equals the plain path: every image, full-length captions, one client at a time, peft's LoRA, torch's Adam."""

import numpy as np
import pytest
import torch

from flora_hpc import plain, trainer
from flora_hpc.clip.attention import split
from flora_hpc.clip.load import Clip
from flora_hpc.clip.text import TextTower
from flora_hpc.config import ClientConfig
from flora_hpc.data.shards import Partition
from flora_hpc.methods import flora
from flora_hpc.methods._method import Method
from tests.conftest import small_model

NUM_CLIENTS, ALPHA = 3, 4.0
ALL = ("text.q_proj", "text.k_proj", "text.v_proj", "text.out_proj", "text.c_fc", "text.c_proj")


class Case:
    """Three clients with 8, 5 and 2 random images of four classes (one caption of them twice) on a small CLIP."""

    def __init__(self, captions: torch.Tensor, targets: tuple[str, ...], dtype: torch.dtype) -> None:
        self.model = split(small_model(dtype=dtype))
        self.clip = Clip(self.model, lambda image: image, lambda text: captions, "small")
        self.tokens = captions
        options = flora.Options(name="flora", rank=2, alpha=ALPHA, targets=targets)
        self.method: Method = flora.build(options, TextTower(self.model, captions), self.model)
        generator = torch.Generator().manual_seed(1)
        self.adapter = torch.randn(self.method.num_params, generator=generator).to(dtype) * 0.2
        self.pixels = torch.randn(15, 3, 8, 8, generator=generator).to(dtype)
        self.labels = torch.randint(0, len(captions), (15,), generator=generator)
        self.features = self.model.encode_image(self.pixels, normalize=True)
        self.shards = Partition(np.arange(15), np.array([0, 8, 13, 15]))

    def batches_of(self, batches: trainer.Batches, client: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        result = []
        for step in np.flatnonzero(batches.active[:, client]):
            rows = torch.from_numpy(batches.examples[step, client][batches.present[step, client]])
            result.append((self.pixels[rows], self.labels[rows]))
        return result


@pytest.mark.parametrize("targets", [("text.out_proj",), *((target,) for target in ALL), ALL], ids=str)
@pytest.mark.parametrize("loss", ["contrastive", "classification"])
def test_gradients_equal_those_of_the_plain_path(captions: torch.Tensor, targets: tuple[str, ...], loss: str) -> None:
    """In float64 the fast path's gradient of every adapter equals that of autograd through the whole plain CLIP."""
    case = Case(captions, targets, torch.float64)
    params = case.adapter.repeat(NUM_CLIENTS, 1).requires_grad_()
    rows = torch.arange(15).view(NUM_CLIENTS, 5)
    scores = case.method.logits(case.method.unpack(params), case.features[rows])
    values = trainer.LOSSES[loss](scores, case.labels[rows], torch.ones(NUM_CLIENTS, 5, dtype=torch.bool))
    (gradients,) = torch.autograd.grad(values.sum(), params)

    wrapped = plain.attach(case.model, case.method.unpack(case.adapter), ALPHA)
    model = wrapped.base_model.model
    for client in range(NUM_CLIENTS):
        value = plain.loss_of_batch(model, case.pixels[rows[client]], case.labels[rows[client]], case.tokens, loss)
        trained = [model.get_parameter(f"{name}.default.weight") for name in case.method.shapes]
        wanted = torch.cat([g.flatten() for g in torch.autograd.grad(value, trained)])
        torch.testing.assert_close(values[client], value, rtol=1e-10, atol=1e-12)
        assert wanted.abs().max() > 1e-6
        torch.testing.assert_close(gradients[client], wanted, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("loss", ["contrastive", "classification"])
def test_a_group_of_unequal_clients_trains_as_each_does_alone_on_the_plain_path(captions: torch.Tensor, loss: str) -> None:
    """Several epochs of Adam in float32, batches of 3 with short last ones: the same updates and losses to rounding."""
    case = Case(captions, ("text.out_proj",), torch.float32)
    config = ClientConfig(epochs=2, batch_size=3, lr=1e-3, loss=loss)
    batches = trainer.make_batches(np.arange(NUM_CLIENTS), case.shards, config, 0, 1)
    fast = trainer.train(case.method, case.adapter, batches, case.features, case.labels, config)
    for client in range(NUM_CLIENTS):
        mine = case.batches_of(batches, client)
        updates, losses = plain.train_client(case.clip, case.method.unpack(case.adapter), ALPHA, case.tokens, mine, config)
        sizes = [len(labels) for _, labels in mine]
        assert fast.num_steps[client] == len(losses)
        assert fast.losses[client].item() == pytest.approx(np.average(losses, weights=sizes), rel=1e-4)
        wanted = case.method.pack(updates)
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(fast.updates[client], wanted, rtol=2e-3, atol=2e-5)


def test_training_leaves_the_frozen_model_as_it_was(captions: torch.Tensor) -> None:
    case = Case(captions, ALL, torch.float32)
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    config = ClientConfig(batch_size=4)
    batches = trainer.make_batches(np.arange(NUM_CLIENTS), case.shards, config, 0, 1)
    trainer.train(case.method, case.adapter, batches, case.features, case.labels, config)
    assert all(tensor.equal(before[name]) for name, tensor in case.model.state_dict().items())
