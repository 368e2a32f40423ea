import numpy as np
import pytest

from flora_hpc.records import views
from flora_hpc.records.schema import ROUNDS, Rows
from tests.contracts.known_helpers import rows

NAN = float("nan")


@pytest.mark.parametrize(("sum_seconds", "shown"), [(4.1, True), (0.9, False)])
def test_a_line_names_every_phase_that_takes_a_tenth_of_its_round(sum_seconds: float, shown: bool) -> None:
    row = rows(ROUNDS, {"round": 1, "train_seconds": 5.0, "sum_seconds": sum_seconds, "round_seconds": 10.0})[0]
    assert (f" | train 5.00 s | sum {views.seconds(sum_seconds)} | wait 0 s" in views.line(row, 3)) == shown
    assert " | train 5.00 s | " in views.line(row, 3)


def test_the_start_is_told_in_parts_where_the_file_has_them() -> None:
    parts = {"setup_start_seconds": 3.0, "setup_build_seconds": 1.0, "setup_features_seconds": 0.5, "setup_state_seconds": 0.25}
    told = "4.75 s (imports and connections 3.00 s, data and model 1.00 s, features 500.0 ms, checks and state 250.0 ms)"
    assert views.start_up({"setup_seconds": 4.75, **parts}) == told
    assert views.start_up({"setup_seconds": 4.75}) == "4.75 s"  # before schema 10
    assert views.start_up({"setup_seconds": 4.75, **parts, "setup_state_seconds": NAN}) == "4.75 s"


def played(accuracies: list[float], losses: list[float], sent: int = 100) -> Rows:
    """Round 0 and a round of training for every loss."""
    made = [
        {"round": i, "test_accuracy": accuracy, "train_loss": loss}
        for i, (accuracy, loss) in enumerate(zip(accuracies, [NAN, *losses], strict=True))
    ]
    return rows(ROUNDS, *({**one, "uplink_bytes": sent if one["round"] else 0} for one in made))


@pytest.mark.parametrize(
    ("accuracies", "losses"),
    [
        ([0.25, 0.25, 0.25], [1.0, 1.0]),
        ([0.386] * 4, [2.787, 2.75, 2.735]),  # a step chosen for another method
        ([0.1, NAN, 0.1], [2.3, 2.3]),
        ([0.1, 0.1, 0.1], [2.3, 40.0]),  # far too large a step
    ],
)
def test_a_run_that_never_moved_says_so(accuracies: list[float], losses: list[float]) -> None:
    told = views.unmoved(played(accuracies, losses))
    assert told.startswith(f"test accuracy stayed at {accuracies[0]:.4f}, and the training loss went from {losses[0]:.4g} to ")
    assert f"in {len(losses)} rounds; client.lr" in told


@pytest.mark.parametrize(
    ("accuracies", "losses", "sent"),
    [
        ([0.25, 0.25, 0.5], [1.0, 1.0], 100),  # it moved
        ([0.25, 0.25, 0.25], [1.0, 0.5], 100),  # its loss did
        ([0.25, 0.25], [1.0], 100),  # one round says nothing
        ([0.25, 0.25, 0.25], [1.0, 1.0], 0),  # nothing is trained
        ([1.0, 1.0, 1.0], [0.1, 0.1], 100),  # nothing is left to learn
        ([0.25, NAN, NAN], [1.0, 1.0], 100),  # never measured again
        ([0.25, 0.25, 0.25], [NAN, NAN], 100),  # every update was rejected, which is told already
    ],
)
def test_other_runs_say_nothing_of_that(accuracies: list[float], losses: list[float], sent: int) -> None:
    assert views.unmoved(played(accuracies, losses, sent)) == ""
    assert views.unmoved(np.zeros(0, ROUNDS)) == ""
