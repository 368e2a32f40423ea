"""What doctor makes of the ranks' rows."""

import re
from dataclasses import replace

import pytest

from flora_hpc.cli._ranks import Row, mismatches, notes, ranges
from flora_hpc.comm.communicator import Choice


def row(rank: int, **changes: object) -> Row:
    """Rank 0 and 1 are on node0, 2 and 3 on node1."""
    shown = [str(rank), f"node{rank // 2}", "", "cpu", "", "", "", f"SLURM_PROCID={rank}"]
    right = Row(shown, rank, rank % 2, f"node{rank // 2} started", False, False, {"torch": "2.13", "MPI library": "MPICH 5"})
    return replace(right, **changes)  # type: ignore[arg-type]


def test_what_fits_is_no_mismatch() -> None:
    assert mismatches([row(rank) for rank in range(4)]) == []


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            row(3, same={"torch": "2.9", "MPI library": "MPICH 5"}),
            "rank 3 on node1 has torch 2.9, rank 0 has 2.13; give every rank",
        ),
        (row(3, launchers_rank=0), r"rank 3 of the communicator is rank 0 of the launcher \(SLURM_PROCID=3\); start"),
        (row(3, local_rank=0), "ranks 2 and 3 are both local rank 0 of node1 and would take the same GPU; start all"),
    ],
)
def test_a_mismatch_is_told_with_the_cure(wrong: Row, sentence: str) -> None:
    (problem,) = mismatches([row(0), row(1), row(2), wrong])
    assert re.match(sentence, problem)


def test_shared_and_unseen_gpus_are_noted() -> None:
    assert notes([row(0), row(1)], Choice("mpi", "")) == []
    (unseen,) = notes([row(0, unseen=True), row(1)], Choice("mpi", ""))
    assert "a run computes on the CPU" in unseen
    (shared,) = notes([row(0, shares=True)], Choice("gloo", "2 ranks share 1 GPU, and NCCL needs one for each"))
    assert "backend gloo: 2 ranks share 1 GPU, and NCCL needs one for each" in shared
    (shared,) = notes([row(0, shares=True)], Choice("mpi", "mpi4py is installed"))
    assert "backend mpi, since NCCL needs one each" in shared


def test_cores_are_written_short() -> None:
    assert ranges([0, 1, 2, 5]) == "0-2,5"
    assert ranges([3]) == "3"
