"""Choices for many clients at once equal NumPy's choices, client by client."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flora_hpc.data.partitioners import _choice
from flora_hpc.data.partitioners._choice import MOST_DRAWN, choose
from flora_hpc.seeds import Streams

CLIENTS = np.array([3, 10**12 - 1, 0, 17, 18, 3])


def one_by_one(streams: Streams, num_items: int, num_drawn: int) -> list[list[int]]:
    return [streams.of(client).choice(num_items, num_drawn, replace=False).tolist() for client in CLIENTS.tolist()]


@settings(deadline=None, database=None)
@given(seed=st.integers(0, 2**32), num_items=st.integers(1, 2**33), num_drawn=st.integers(1, 80))
def test_they_are_numpys(seed: int, num_items: int, num_drawn: int) -> None:
    streams, num_drawn = Streams(seed, "population"), min(num_drawn, num_items)
    assert choose(streams, CLIENTS, num_items, num_drawn).tolist() == one_by_one(streams, num_items, num_drawn)


@pytest.mark.parametrize(("num_items", "num_drawn"), [(2, 1), (40, 39), (65, 64), (1438, 32), (20_000, 64), (3 * 2**30, 5)])
def test_the_steps_themselves_are_numpys(num_items: int, num_drawn: int) -> None:
    """A quarter of the draws below 3 * 2^30 must be repeated; NumPy itself chooses for these clients."""
    assert num_drawn <= MOST_DRAWN
    streams = Streams(0, "population")
    chosen, drawn_anew = _choice._choose(streams.raw(CLIENTS, num_drawn), num_items, num_drawn)
    expected = one_by_one(streams, num_items, num_drawn)
    assert [a == b for a, b in zip(chosen.tolist(), expected, strict=True)] == (~drawn_anew).tolist()
    assert drawn_anew.any() == (num_items > 2**31)


def test_a_numpy_that_draws_in_another_way_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = _choice._choose
    monkeypatch.setattr(_choice, "_choose", lambda *rest: (right(*rest)[0] + 1, right(*rest)[1]))
    streams = Streams(0, "population")
    assert choose(streams, CLIENTS, 1438, 32).tolist() == one_by_one(streams, 1438, 32)
