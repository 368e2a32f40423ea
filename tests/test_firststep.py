"""Which way the first step of a round goes, and how ranks make a Jacobian together. Its gradients: tests/test_oracle.py."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch

from flora_hpc import firststep
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.errors import UserError
from flora_hpc.methods._method import CaptionRows, Costs, Method, Noise, Portions, Tensors
from tests.test_trainer import linear_method

COSTS = Costs(text_positions=40, positions_alone=100, text_shape=(10, 100))


@pytest.fixture
def method() -> Method:
    """Six trained numbers, which decide features of captions: 40 positions, 100 if each caption were alone."""
    return replace(linear_method(), costs=COSTS)


@pytest.mark.parametrize(
    ("num_clients", "shape", "flops", "expected"),
    [
        (250, (10, 100), 10**7, False),  # for the Jacobian, 100 rows of 100 positions; for clients, 40 each; and a product for each
        (251, (10, 100), 10**7, True),
        (10**6, (10, 100), 300, False),  # a product would take as long as the way back
        (10**9, (2**20, 64), 10**12, False),  # more than a gibibyte
    ],
)
def test_a_jacobian_pays_for_a_crowd(method: Method, num_clients: int, shape: tuple[int, int], flops: int, expected: bool) -> None:
    assert firststep.choose("auto", replace(method, costs=COSTS._replace(text_shape=shape)), False, num_clients, flops) is expected


REASONS: dict[str, dict[str, Any]] = {
    "it is for CPUs so far": {},
    "each client sees the pixels of its own images": {"sees": "pixels"},
    "each client encodes the captions of its own images": {"paired": True},
    "what is trained encodes no captions": {"costs": COSTS._replace(text_positions=0)},
    "the text tower's own code runs": {"costs": COSTS._replace(positions_alone=0)},
    "each client drops out other numbers": {"noisy": True},
    "clients hold different parts of the adapter": {
        "portions": Portions(lambda clients: torch.ones(len(clients), 6), lambda clients: clients)
    },
}


@pytest.mark.parametrize("reason", REASONS)
def test_where_there_is_none(method: Method, reason: str) -> None:
    other, on_gpu = replace(method, **REASONS[reason]), not REASONS[reason]
    assert not firststep.choose("auto", other, on_gpu, 10**6, 10**9)
    assert not firststep.choose("each", other, on_gpu, 10**6, 10**9)
    with pytest.raises(UserError, match=f"^client.first_step: jacobian cannot be, since {reason}; leave it out$"):
        firststep.choose("jacobian", other, on_gpu, 10, 10)
    if not on_gpu:
        assert firststep.describe(other, False) == f"as every other, since {reason}"


def test_what_a_user_asks_for(method: Method) -> None:
    assert not firststep.choose("each", method, False, 10**6, 10**9)
    assert firststep.choose("jacobian", method, False, 10, 1000)
    with pytest.raises(UserError, match="cannot be, since its 100,000,000 x 6 numbers take more than a gibibyte"):
        firststep.choose("jacobian", replace(method, costs=COSTS._replace(text_shape=(10**6, 100))), False, 10, 1000)
    assert firststep.describe(method, True) == "one Jacobian of the captions' features for all clients, and a product for each"
    assert firststep.describe(method, False) == "captions are encoded once for all clients of a group, forwards"


class Ranks(Serial):
    """One of several ranks, which are threads."""

    def __init__(self, rank: int, sent: list[bytes], meet: Callable[[], int]) -> None:
        super().__init__()
        self.rank, self.size, self._sent, self._meet = rank, len(sent), sent, meet

    def allgather(self, data: bytes) -> list[bytes]:
        self._sent[self.rank] = data
        self._meet()
        return list(self._sent)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_ranks_make_a_jacobian_together(size: int) -> None:
    """Of three captions with 300 numbers each, in two blocks; with seven ranks, one has none."""
    matrix, sent, barrier = torch.randn(3, 300), [b""] * size, Barrier(size)

    def classes(tensors: Tensors, noise: Noise, caption_rows: CaptionRows = None) -> torch.Tensor:
        first = tensors["weight"].flatten(1)[:, :1, None]
        return first * (matrix if caption_rows is None else matrix[caption_rows[0]])

    method, adapter = replace(linear_method(), classes=classes), torch.randn(6)

    def make(rank: int) -> firststep.FirstStep:
        return firststep.make(method, adapter, Ranks(rank, sent, partial(barrier.wait, timeout=30)))

    with ThreadPoolExecutor(size) as ranks:
        for first in ranks.map(make, range(size)):
            assert first.classes.equal((adapter[0] * matrix)[None])
            assert first.jacobian[:, 0].equal(matrix.flatten())
            assert not first.jacobian[:, 1:].any()
    num_bytes = firststep.sent_bytes(replace(method, costs=Costs(text_shape=(3, 300))), True, size)
    assert sum(map(len, sent)) == num_bytes == (6 * matrix.nbytes if size > 1 else 0)
    assert firststep.sent_bytes(method, False, size) == 0


def test_gradients_of_a_curve_by_hand() -> None:
    """Of T = sin(w), the gradient by w is that by T times cos(w)."""

    def classes(tensors: Tensors, noise: Noise, caption_rows: CaptionRows = None) -> torch.Tensor:
        features = tensors["weight"].sin()
        return features if caption_rows is None else features[:, caption_rows[0]]

    method = replace(linear_method(), classes=classes)
    adapter, by_classes = torch.linspace(0, 1, 6), torch.randn(70, 2, 3)
    first = firststep.make(method, adapter, Serial())
    assert first.classes.equal(adapter.view(1, 2, 3).sin())
    np.testing.assert_allclose(first.by_params(by_classes), by_classes.flatten(1) * adapter.cos(), rtol=1e-5, atol=1e-7)
