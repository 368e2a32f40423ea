from dataclasses import replace
from typing import Any

import pytest

from flora_hpc.bench.cluster import verdict
from flora_hpc.bench.cluster.play import Played
from flora_hpc.bench.cluster.verdict import Plays
from tests.bench.cluster.known import one_node, played, units_of

NODES = units_of("n0", "n1", "n2", "n3")
BAND = (0.5, 1.0)


def plays(**changes: Any) -> Plays:
    """Four nodes of one rank, sizes 1, 2 and 4, everything as it must be."""
    curve = {1: [played([rank]) for rank in range(4)], 2: [played([0, 1]), played([2, 3])], 4: [played([0, 1, 2, 3])]}
    proofs = {size: [replace(part, digests=["p", "q"]) for part in of_size] for size, of_size in curve.items()}
    return replace(Plays(["x"] * 4, curve, proofs, strong=True), **changes)


def swapped(of: dict[int, list[Played]], size: int, part: int, **changes: Any) -> dict[int, list[Played]]:
    """The same plays, one part changed."""
    return {
        units: [replace(each, **changes) if (units, number) == (size, part) else each for number, each in enumerate(of_size)]
        for units, of_size in of.items()
    }


def test_a_valid_result() -> None:
    result = verdict.judge(plays(), NODES, BAND)
    assert (result.valid, result.culprit) == (True, "")
    assert result.as_dict()["checks"][0] == {"name": "each rank alone", "passed": True, "text": "4 ranks, one digest: x"}
    assert result.checks[2].text == "14 runs, on 1 and 2 and 4 nodes: one digest for each round"


def test_a_rank_that_computes_wrongly_alone_is_named_first() -> None:
    digests = swapped(plays().curve, 1, 2, digests=["a", "z", "z"])  # type: ignore[arg-type]
    result = verdict.judge(plays(probes=["x", "x", "y", "x"], curve=digests), NODES, BAND)
    assert result.culprit.startswith("rank 2 on n2: another digest than the other ranks")
    assert [check.passed for check in result.checks] == [False, True, False, True, True]
    assert result.checks[2].text == "n2: another digest than the smallest run's, first after round 1"


@pytest.mark.parametrize("probes", [["", "", "", ""], ["x", "x", "", "x"], ["x", "x"]])
def test_a_rank_without_a_digest_failed(probes: list[str]) -> None:
    check = verdict.ranks_alone(probes, NODES)
    assert not check.passed
    assert "rank 2 on n2" in check.text
    assert check.text.endswith("did not finish the round that each rank plays alone")


def test_fewer_rounds_are_another_digest() -> None:
    fewer = swapped(plays().curve, 2, 1, digests=["a", "b"])  # type: ignore[arg-type]
    assert verdict.same_digests(plays(curve=fewer), NODES).text.endswith(
        "another digest than the smallest run's, first after round 2"
    )


def test_one_rank_compares_nothing_and_weak_scaling_one_round() -> None:
    alone = Plays(["x"], {1: [played([0])]}, {1: [played([0])]}, strong=True)
    texts = [check.text for check in verdict.judge(alone, one_node(1), BAND).checks]
    assert texts[0] == texts[2] == "one rank: nothing to compare"
    weak = verdict.judge(plays(strong=False), NODES, BAND).checks[2].text
    assert weak == "7 runs, on 1 and 2 and 4 nodes: one digest for the one round that all sizes play"


def test_of_two_ranks_either_may_be_wrong() -> None:
    result = verdict.ranks_alone(["x", "y"], one_node(2))
    assert result.text.startswith("rank 1 on n0:")
    assert result.text.endswith("with two ranks either may be wrong")


def test_ranks_that_drift_apart_are_named_with_the_round() -> None:
    drifted = swapped(plays().curve, 4, 0, digests=["a"], drift=["u", "u", "v", "u"])  # type: ignore[arg-type]
    result = verdict.judge(plays(curve=drifted), NODES, BAND)
    assert result.culprit == "rank 2 on n2: another adapter than the other ranks, in round 1 on 4 nodes (n0, n1, n2, n3)"


def test_rounds_that_ended_early() -> None:
    ended = swapped(plays().proofs, 2, 1, problem="not finite")  # type: ignore[arg-type]
    assert verdict.judge(plays(proofs=ended), NODES, BAND).culprit == "the rounds ended in round 2 on 2 nodes (n2, n3): not finite"


def test_a_size_with_another_digest_is_named() -> None:
    wrong = swapped(plays().proofs, 2, 1, digests=["p", "z"])  # type: ignore[arg-type]
    result = verdict.judge(plays(proofs=wrong), NODES, BAND)
    assert result.culprit == "2 nodes (n2, n3): another digest than the smallest run's, first after round 1"


def test_weak_scaling_compares_the_proofs_and_parts_of_one_size() -> None:
    other = swapped(plays().curve, 4, 0, digests=list("xyz"))  # type: ignore[arg-type]
    assert verdict.judge(plays(curve=other, strong=False), NODES, BAND).valid, "other clients, other digests"
    other = swapped(plays().curve, 2, 1, digests=list("xyz"))  # type: ignore[arg-type]
    assert verdict.judge(plays(curve=other, strong=False), NODES, BAND).culprit.endswith("another digest than parts of its size")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_rejected": 3}, "3 updates were not finite or far too large"),
        ({"num_rejected": 1}, "1 update was not finite or far too large"),
        ({"accuracy": 0.4}, "0.400 to 0.900, the class's band is 0.5 to 1"),
        ({"accuracy": float("nan")}, "0.900 to 0.900, the class's band is 0.5 to 1; 1 part ended before"),
    ],
)
def test_rejected_clients_and_accuracies_outside_of_the_band(change: dict[str, float], said: str) -> None:
    result = verdict.judge(plays(curve=swapped(plays().curve, 2, 0, **change)), NODES, BAND)  # type: ignore[arg-type]
    assert said in result.culprit
