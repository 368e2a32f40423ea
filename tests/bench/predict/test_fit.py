"""Fits find the coefficients of made-up runs, and say which run is missing."""

import numpy as np
import pytest

from flora_hpc.bench.predict import drivers
from flora_hpc.bench.predict.drivers import COLUMNS
from flora_hpc.bench.predict.fit import fit
from tests.bench.predict.made import SECONDS, sample, setup, various

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("phase", COLUMNS)
def test_seconds_of_runs_and_of_a_run_that_is_not_among_them(phase: str) -> None:
    """Coefficients may differ where drivers grow together; seconds may not."""
    term = fit(phase, various(), RNG)
    assert term is not None
    for num_ranks, keys in ((1, {"cohort__size": 2000}), (2, {"cohort__size": 1000, "client__batch_size": 8})):
        rows = drivers.of_round(setup(num_ranks, **keys), num_ranks).of[phase]
        np.testing.assert_allclose(term.seconds(rows), rows @ SECONDS[phase], rtol=0.02, atol=1e-4)


def test_coefficients_of_training() -> None:
    term = fit("train", various(), RNG)
    assert term is not None
    np.testing.assert_allclose(term.coefficients[[0, 4]], SECONDS["train"][[0, 4]], rtol=0.3)


def test_a_band_grows_with_noise() -> None:
    rows = drivers.of_round(setup(cohort__size=1000), 1).of["train"]
    widths = []
    for noise in (0.0, 0.2, 0.5):
        term = fit("train", various(noise), RNG)
        assert term is not None
        widths.append(float(np.ptp(np.quantile(term.sampled(rows), (0.025, 0.975)))))
    assert widths[0] < widths[1] < widths[2]


def test_no_run_shows_a_phase() -> None:
    assert fit("comm", [sample()], RNG) is None, "one rank sends nothing"


@pytest.mark.parametrize(
    ("kept", "target", "cure"),
    [
        ({"client__batch_size": 32}, {"client__batch_size": 8}, "a smaller client.batch_size"),
        ({"client__first_step": "each"}, {"client__first_step": "jacobian"}, "client.first_step: jacobian"),
        ({"cohort__size": 64}, {"cohort__size": 2000}, "another cohort.size"),
    ],
)
def test_the_run_that_is_missing_is_named(kept: dict[str, object], target: dict[str, object], cure: str) -> None:
    runs = [sample(**({"client__first_step": "jacobian", "cohort__size": size} | kept)) for size in (8, 64)]
    term = fit("train", runs, RNG)
    assert term is not None
    assert term.unvaried(drivers.of_round(setup(**({"client__first_step": "jacobian"} | target)), 1).of["train"][0]) == cure


def test_nothing_is_missing_where_runs_vary_all() -> None:
    term = fit("train", various(), RNG)
    assert term is not None
    assert term.unvaried(drivers.of_round(setup(cohort__size=2000, client__batch_size=8), 1).of["train"][0]) == ""
