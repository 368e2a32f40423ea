import math
from fractions import Fraction

import numpy as np
import pytest

from flora_hpc.records import totals
from flora_hpc.records.schema import CLIENTS, ROUNDS, Rows

SMALLEST, LARGEST = np.float32(2.0**-149), np.finfo(np.float32).max


def made(losses: list[float], examples: list[int], weights: list[int] | None = None) -> Rows:
    rows = np.zeros(len(losses), CLIENTS)
    rows["train_loss"], rows["num_examples"] = losses, examples
    rows["weight"] = examples if weights is None else weights
    return rows


def noted(*parts: Rows) -> Rows:
    row = np.zeros(1, ROUNDS)
    totals.note(row, [totals.of(part) for part in parts])
    return row


def test_a_mean_by_hand() -> None:
    """(2 x 1.5 + 6 x 0.25) / 8; the third update was left out of the average, and its client counts nevertheless."""
    row = noted(made([1.5], [2]), made([0.25, 7], [6, 5], [6, 0]))[0]
    assert row["train_loss"] == 0.5625
    assert [row[name].item() for name in ("num_clients", "num_rejected", "num_examples")] == [3, 1, 13]


def test_the_sum_is_exact_from_the_smallest_to_the_largest_numbers() -> None:
    losses, examples = np.array([SMALLEST, LARGEST, -LARGEST, 0.1, -3.0], np.float32), np.array([3, 2, 2, 2**31 - 1, 5])
    expected = sum(Fraction(float(loss)) * int(number) for loss, number in zip(losses, examples, strict=True))
    assert Fraction(totals.weighted_sum(losses, examples), 2**totals.UNIT) == expected


def test_the_mean_is_rounded_once_and_depends_on_no_order_and_no_cut() -> None:
    rng = np.random.default_rng(0)
    losses, examples = rng.lognormal(0, 3, 1000).astype(np.float32), rng.integers(1, 500, 1000)
    rows = made(losses.tolist(), examples.tolist())
    expected = math.fsum((losses.astype(float) * examples).tolist()) / examples.sum()
    shuffled = rows[rng.permutation(1000)]
    means = [noted(rows), noted(shuffled[:1], shuffled[1:400], shuffled[400:400], shuffled[400:])]
    assert means[0]["train_loss"] == means[1]["train_loss"]
    assert means[0]["train_loss"][0] == pytest.approx(expected, rel=3e-16)


@pytest.mark.parametrize(("losses", "mean"), [([np.inf, 1], np.inf), ([np.inf, -np.inf], np.nan), ([np.nan, 1], np.nan)])
def test_a_loss_that_is_not_finite_makes_the_mean_so(losses: list[float], mean: float) -> None:
    np.testing.assert_equal(noted(made(losses[:1], [1]), made(losses[1:], [1]))["train_loss"][0], mean)
