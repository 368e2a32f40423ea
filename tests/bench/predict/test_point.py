"""A predicted round."""

from dataclasses import replace

import numpy as np
import pytest

from flora_hpc.bench.predict import drivers, point
from flora_hpc.bench.predict.drivers import OF_RANK
from flora_hpc.bench.predict.point import Model, Target
from flora_hpc.errors import UserError
from tests.bench.predict.made import SECONDS, sample, setup, various


@pytest.fixture(scope="module")
def model() -> Model:
    return replace(point.model(various()), merge_seconds=0.0)


def seconds(num_ranks: int, **keys: object) -> float:
    """The true seconds of a round without noise."""
    shape = drivers.of_round(setup(num_ranks, **keys), num_ranks)
    own = sum(shape.of[phase] @ SECONDS[phase] for phase in OF_RANK)
    others = sum(float(shape.of[phase][0] @ SECONDS[phase]) for phase in SECONDS if phase not in (*OF_RANK, "log"))
    log = float(shape.of["log"][0] @ SECONDS["log"])
    return float(max(own.max(), own[0] + log)) + others


@pytest.mark.parametrize(("ranks", "size", "batch"), [(1, 2000, 32), (1, 1000, 8), (2, 2000, 16), (8, 2000, 32)])
def test_a_larger_round(model: Model, ranks: int, size: int, batch: int) -> None:
    keys = {"cohort__size": size, "client__batch_size": batch}
    result = point.predict(model, setup(ranks, **keys), Target(1, ranks))
    assert result.seconds.value == pytest.approx(seconds(ranks, **keys), rel=0.02)
    assert result.seconds.low <= result.seconds.value <= result.seconds.high
    assert sum(term.value for term in result.terms.values()) == pytest.approx(result.seconds.value)
    assert result.dominating == ("jacobian" if ranks == 8 else "train")
    assert result.measured is None
    assert result.warnings == ()


def test_a_point_that_was_measured(model: Model) -> None:
    result = point.predict(model, setup(2, cohort__size=512), Target(1, 2))
    assert result.measured is not None
    assert result.measured.num_ranks == 2
    assert point.predict(model, setup(2, cohort__size=512, partition__examples_per_client=16), Target(1, 2)).measured is None


def test_cores_that_ranks_share(model: Model) -> None:
    """16 ranks on 2 cores share them for their work and the server's part, and wait for turns in collectives; tests do not."""
    keys = {"cohort__size": 2000}
    free, crowded = (point.predict(model, setup(16, **keys), Target(1, 16, cores=cores)) for cores in (None, 2))
    own = sum(drivers.of_round(setup(16, **keys), 16).of[phase] @ SECONDS[phase] for phase in OF_RANK).sum() / 2
    assert sum(crowded.terms[phase].value for phase in OF_RANK) == pytest.approx(1.35 * own, rel=0.03)
    assert crowded.terms["eval"].value == free.terms["eval"].value
    assert crowded.terms["server"].value == pytest.approx(8 * free.terms["server"].value)
    turns = 4 * 4 * 8 * 2e-3  # collectives, a Jacobian's among them; doublings of 16 ranks; ranks of a core; seconds of a turn
    assert crowded.terms["comm"].value == pytest.approx(free.terms["comm"].value + turns)
    assert point.predict(model, setup(16, **keys), Target(1, 16, cores=16)).seconds.value == pytest.approx(
        free.seconds.value, rel=0.05
    )


def test_nodes_that_no_run_shows(model: Model) -> None:
    (sentence,) = point.predict(model, setup(4), Target(2, 2)).warnings
    assert "between nodes counts as inside a node" in sentence


def test_runs_of_one_rank_leave_communication_out() -> None:
    alone = point.model([each for each in various() if each.num_ranks == 1])
    result = point.predict(alone, setup(2), Target(1, 2))
    assert any("mpiexec -n 2" in sentence for sentence in result.warnings)
    assert result.terms["comm"].value == 0
    assert point.predict(alone, setup(), Target()).warnings == ()


def test_training_that_no_run_shows_is_refused() -> None:
    model = point.model([sample(cohort__size=size) for size in (8, 64)])
    with pytest.raises(UserError, match=r"give a run with a smaller client.batch_size, too"):
        point.predict(model, setup(client__batch_size=8), Target())


def test_merging_the_reports_of_many_ranks_is_measured(model: Model) -> None:
    slow = replace(model, merge_seconds=0.01)
    result = point.predict(slow, setup(64, cohort__size=2000), Target(1, 64))
    assert result.terms["log"].value == pytest.approx(0.63, rel=0.1), "63 more reports, while other ranks wait"


def test_the_draws_are_the_same_each_time(model: Model) -> None:
    one, two = (point.predict(model, setup(cohort__size=1000), Target()).terms["train"] for _ in range(2))
    assert one == two
    assert np.isfinite(one.high)
