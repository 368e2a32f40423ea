from pathlib import Path

import numpy as np
import pytest

from flora_hpc.records.schema import ROUNDS, Rows
from flora_hpc.report import study_results
from flora_hpc.report.study_bands import band, clipped
from flora_hpc.studies.statistics import spread
from tests.contracts.known_helpers import rows
from tests.report.made_studies import NAN, write_study


def table(*accuracies: float, first: int = 0) -> Rows:
    """Rows of /rounds with 100 bytes up, 50 down, 2 s a round and 0.5 s of training in each round but round 0."""
    costs = {"uplink_bytes": 100, "downlink_bytes": 50, "round_seconds": 2, "train_seconds": 0.5}
    return rows(
        ROUNDS,
        *(
            {"round": number, "test_accuracy": accuracy} | (costs if number else {})
            for number, accuracy in enumerate(accuracies, first)
        ),
    )


def test_mean_and_interval_of_three_seeds_by_hand() -> None:
    """Student's t for two degrees of freedom is 4.3027: 0.1 * 4.3027 / sqrt(3) = 0.24841."""
    found = band([table(0.1, 0.5), table(0.1, 0.6), table(0.1, 0.7)], "test_accuracy", 100)
    assert found is not None
    np.testing.assert_allclose(found.mean, [0.1, 0.6])
    np.testing.assert_allclose(found.low, [0.1, 0.6 - 0.24841], atol=1e-5)
    np.testing.assert_allclose(found.high, [0.1, 0.6 + 0.24841], atol=1e-5)
    assert found.n.tolist() == [3, 3]
    assert {cost: values.tolist() for cost, values in found.x.items()} == {
        "round": [0, 1], "bytes": [0, 150], "seconds": [0, 2], "train_seconds": [0, 0.5],
    }  # fmt: skip


def test_each_round_is_what_the_statistics_of_a_study_say() -> None:
    values = np.random.default_rng(3).random((5, 7))
    values[1, 4] = values[3, 4] = NAN
    found = band([table(*row) for row in values], "test_accuracy", 100)
    assert found is not None
    for number in range(7):
        expected = spread(values[:, number])
        numbers = [found.n[number], found.mean[number], found.low[number], found.high[number]]
        np.testing.assert_allclose(numbers, [expected.n, expected.mean, expected.low, expected.high], rtol=1e-6)


def test_a_run_that_lacks_rounds_counts_where_it_has_them() -> None:
    found = band([table(0.1, 0.5, 0.6), table(0.1, 0.7)], "test_accuracy", 100)
    assert found is not None
    assert found.n.tolist() == [2, 2, 1]
    np.testing.assert_allclose(found.mean, [0.1, 0.6, 0.6])
    assert np.isnan(found.low).tolist() == [False, False, True]


def test_rounds_without_a_test_are_no_points_but_cost() -> None:
    """As with evaluate.every: 2."""
    found = band([table(0.1, NAN, 0.5, NAN, 0.7)], "test_accuracy", 100)
    assert found is not None
    assert found.x["round"].tolist() == [0, 2, 4]
    assert found.x["bytes"].tolist() == [0, 300, 600]
    assert found.x["train_seconds"].tolist() == [0, 1, 2]


def test_one_seed_has_no_band() -> None:
    found = band([table(0.1, 0.5)], "test_accuracy", 100)
    assert found is not None
    assert np.isnan(found.low).all()
    assert np.isnan(found.high).all()


def test_what_was_never_measured_is_none() -> None:
    assert band([table(NAN, NAN)], "test_accuracy", 100) is None
    assert band([], "test_accuracy", 100) is None
    assert band([table(0.1)[["round", "test_accuracy"]]], "personal_accuracy_mean", 100) is None, "files of old versions"


def test_many_rounds_are_thinned_and_keep_their_ends() -> None:
    accuracies = np.linspace(0, 1, 1000)
    found = band([table(*accuracies), table(*accuracies)], "test_accuracy", 50)
    assert found is not None
    assert all(len(values) == 50 for values in (found.n, found.mean, found.low, found.high, *found.x.values()))
    assert (found.mean[0], found.mean[-1]) == (0, 1)
    np.testing.assert_allclose(found.mean, found.x["round"] / 999, atol=1e-6)


def test_an_axis_is_not_fitted_to_a_very_wide_band() -> None:
    """The curve goes from 0.4 to 0.6; the interval of two seeds is 12.7 times as wide as their standard error."""
    found = band([table(0.35, 0.5), table(0.45, 0.7)], "test_accuracy", 100)
    assert found is not None
    low, high = clipped(found)
    assert min(low) == pytest.approx(0.4 - 0.75 * 0.2)
    assert max(high) == pytest.approx(0.6 + 0.75 * 0.2)


def test_only_finished_points_are_in_curves(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", [({"seed": 0}, [0.1, 0.5]), ({"seed": 1}, [0.1, 0.7]), ({"seed": 2}, "no luck")])
    (group,) = study_results.read(study).groups
    assert group.bands["test_accuracy"].n.tolist() == [2, 2]
    assert group.bands["test_accuracy"].mean[-1] == pytest.approx(0.6)
    assert group.final.mean == pytest.approx(0.6)
