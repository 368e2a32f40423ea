"""Drivers of a round, worked out by hand."""

import numpy as np
import pytest

from flora_hpc.bench.predict import drivers
from tests.bench.predict.made import setup


def named(phase: str, shape: drivers.Drivers, rank: int = 0) -> dict[str, float]:
    return dict(zip(drivers.COLUMNS[phase], shape.of[phase][rank].tolist(), strict=True))


def test_one_rank_whose_clients_make_two_steps() -> None:
    """64 clients with 32 examples each and 16 a step, in one group: 2 steps of each client."""
    shape = drivers.of_round(setup(client__batch_size=16, client__first_step="each"), 1)
    assert (shape.num_clients, shape.num_groups) == (64, 1)
    assert named("batch", shape) == {"round": 1, "groups": 1, "clients": 64, "examples": 64 * 32}
    assert named("train", shape) == {
        "groups": 1,
        "first steps": 64,
        "first steps by Jacobian": 0,
        "later steps of groups": 1,
        "later steps": 64,
        "examples": 64 * 32,
    }
    assert named("jacobian", shape) == {"Jacobian": 0, "rows of others": 0}
    assert named("eval", shape) == {"blocks": 1}
    assert named("log", shape) == {"round": 1, "rows": 64, "clients": 64}
    assert not shape.of["comm"].any(), "one rank sends nothing"


def test_ranks_share_a_jacobian_and_the_clients() -> None:
    """Ten captions are ten parts of a Jacobian, of which three ranks take 4, 3 and 3; so do they take 64 clients."""
    shape = drivers.of_round(setup(3, client__first_step="jacobian"), 3)
    np.testing.assert_allclose(shape.of["jacobian"], [[0.4, 0.6], [0.3, 0.7], [0.3, 0.7]])
    np.testing.assert_array_equal(shape.of["train"][:, :5], [[1, 0, 22, 0, 0], [1, 0, 21, 0, 0], [1, 0, 21, 0, 0]])
    np.testing.assert_array_equal(shape.of["log"], [[1, 64, 64]])


def test_epochs_repeat_steps_and_a_sample_of_rows_is_written() -> None:
    shape = drivers.of_round(setup(client__epochs=3, client__first_step="each", records__clients="sample 5"), 1)
    assert named("train", shape)["later steps"] == 2 * 64
    assert named("train", shape)["examples"] == 3 * 32 * 64
    assert named("log", shape) == {"round": 1, "rows": 5, "clients": 64}


def test_a_rank_without_clients() -> None:
    shape = drivers.of_round(setup(2, cohort__size=1, client__first_step="each"), 2)
    assert named("train", shape, 1) == dict.fromkeys(drivers.COLUMNS["train"], 0)
    assert named("batch", shape, 1) == {"round": 1, "groups": 0, "clients": 0, "examples": 0}


@pytest.mark.parametrize(
    ("ranks", "nodes", "expected"), [(1, 1, [0, 0, 0, 0]), (8, 1, [3, 0, 100, 0]), (8, 4, [1, 2, 0, 100]), (4, 4, [0, 2, 0, 100])]
)
def test_collectives_by_doublings_within_and_between_nodes(ranks: int, nodes: int, expected: list[float]) -> None:
    assert drivers.comm(100, ranks, nodes) == expected


def test_bytes_that_pass_a_rank() -> None:
    """An exact sum goes out and comes back but for a rank's own part: 2 (P - 1) / P of its bytes; rows of other ranks' clients."""
    built = setup(2, client__first_step="each")
    sums = 8 * (2 * built.method.num_params + 2)
    rows = drivers.CLIENTS.itemsize * 64 / 2
    assert drivers.of_round(built, 2).of["comm"][0, 2] == sums + rows
