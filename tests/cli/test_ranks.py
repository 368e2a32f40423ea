"""What doctor makes of the ranks' rows."""

import re
from dataclasses import replace

import pytest

from flora_hpc.cli._ranks import Row, mismatches, nodes, notes, ranges
from flora_hpc.comm.communicator import Choice
from flora_hpc.comm.node import Node


def row(rank: int, **changes: object) -> Row:
    """Rank 0 and 1 are on node0, 2 and 3 on node1."""
    right = Row(
        rank=rank,
        host=f"node{rank // 2}",
        local_rank=rank % 2,
        device="cpu",
        cores=[2 * (rank % 2), 2 * (rank % 2) + 1],
        core_quota=None,
        num_threads=2,
        library="MPICH 5",
        place=f"SLURM_PROCID={rank}",
        launchers_rank=rank,
        machine=f"node{rank // 2} started",
        node=Node("EPYC", 4, 8_000_000_000, None),
        same={"torch": "2.13", "MPI library": "MPICH 5"},
    )
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
    (unseen,) = notes([row(0, unseen="cuda:0 by CUDA_VISIBLE_DEVICES=3"), row(1)], Choice("mpi", ""))
    assert "a run computes on the CPU" in unseen
    (shared,) = notes([row(0, shares=True)], Choice("gloo", "2 ranks share 1 GPU, and NCCL needs one for each"))
    assert "backend gloo: 2 ranks share 1 GPU, and NCCL needs one for each" in shared
    (shared,) = notes([row(0, shares=True)], Choice("mpi", "mpi4py is installed"))
    assert "backend mpi, since NCCL needs one each" in shared


def test_cores_are_written_short() -> None:
    assert ranges([0, 1, 2, 5]) == "0-2,5"
    assert ranges([3]) == "3"


def test_a_row_of_the_table_tells_binding_and_quota() -> None:
    assert row(3).cells() == ["3", "node1", "1", "cpu", "2 (2-3)", "2", "MPICH 5", "SLURM_PROCID=3"]
    assert row(0, core_quota=1.5).cells()[4] == "2 (0-1), quota 1.5"
    assert row(0, unseen="cuda:0 by X").cells()[3] == "cpu (cuda:0 by X)"


def test_each_machine_is_told_once_with_its_lowest_limit() -> None:
    lower = row(3, node=Node("EPYC", 4, 8_000_000_000, 2_000_000_000))
    unknown = row(4, node=Node("unknown", 1, None, None))
    assert nodes([*map(row, range(3)), lower, unknown]) == [
        ["node0", "0-1", "EPYC", "4", "8.0 GB"],
        ["node1", "2-3", "EPYC", "4", "8.0 GB, limit 2.0 GB"],
        ["node2", "4", "unknown", "1", "unknown"],
    ]


@pytest.mark.parametrize(
    ("cores", "sentence"),
    [
        ([0, 1], r"ranks 2 and 3 of node1 may use the same cores \(0-1\) and share them out by number; srun --cpu-bind=cores"),
        ([1, 2], "ranks 2 and 3 of node1 may both use core 1, but each others besides"),
    ],
)
def test_ranks_with_the_same_cores_are_noted(cores: list[int], sentence: str) -> None:
    """Ranks of other machines may have cores of the same numbers."""
    (note,) = notes([row(0), row(1), row(2), row(3, cores=cores)], Choice("mpi", ""))
    assert re.match(sentence, note)
