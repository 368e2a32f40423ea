from dataclasses import replace

import pytest

from flora_hpc.bench.cluster import parts
from flora_hpc.bench.cluster.parts import Spot, Units
from flora_hpc.comm.communicator import AgreedError
from tests.bench.cluster.known import one_node, units_of


def test_ranks_of_one_node_are_units() -> None:
    units = one_node(3)
    assert (units.are_nodes, units.count, units.of_ranks, units.name(2)) == (False, 3, [0, 1, 2], "rank 2")
    assert units.rank_name(1) == "rank 1 on n0"


def test_nodes_are_units_whatever_the_order_of_their_ranks() -> None:
    units = units_of("n0", "n1", "n0", "n1")
    assert (units.are_nodes, units.count, units.of_ranks, units.name(1)) == (True, 2, [0, 1, 0, 1], "n1")
    assert [units.colour(rank, 1) for rank in range(4)] == [0, 1, 0, 1]
    assert units.members(1, 1) == [1, 3]


def test_units_that_are_left_over_play_in_no_part() -> None:
    units = one_node(5)
    assert [units.colour(rank, 2) for rank in range(5)] == [0, 0, 1, 1, None]


@pytest.mark.parametrize(
    ("count", "smallest", "expected"),
    [
        (1, 1, [1]),
        (2, 1, [1, 2]),
        (3, 1, [1, 2, 3]),
        (8, 1, [1, 2, 4, 8]),
        (8, 16, [2, 4, 8]),  # a quarter of all
        (12, 16, [2, 4, 8, 12]),  # the power of two below a quarter
        (64, 16, [16, 32, 64]),
        (1024, 128, [128, 256, 512, 1024]),
    ],
)
def test_sizes(count: int, smallest: int, expected: list[int]) -> None:
    assert parts.sizes(count, smallest) == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cpu": "Slow CPU"}, "processor: Fast CPU on n0 and Slow CPU on n1"),
        ({"gpu": "A GPU"}, "GPU: none on n0 and A GPU on n1"),
        ({"threads": 1}, "threads of a rank: 4 on n0 and 1 on n1"),
        ({"memory": 32 * 10**9}, "bytes of memory: 64000000000 on n0 and 32000000000 on n1"),
    ],
)
def test_unlike_nodes_are_refused(change: dict[str, object], said: str) -> None:
    spots: list[Spot] = units_of("n0", "n1").spots
    parts.refuse_unlike(Units(spots))
    parts.refuse_unlike(Units([spots[0], replace(spots[1], memory=63 * 10**9)]))
    with pytest.raises(AgreedError, match=f"the nodes are unlike: {said}; ask for nodes of one kind"):
        parts.refuse_unlike(Units([spots[0], replace(spots[1], **change)]))  # type: ignore[arg-type]


def test_nodes_with_other_numbers_of_ranks_are_unlike() -> None:
    with pytest.raises(AgreedError, match="ranks: 2 on n0 and 1 on n1"):
        parts.refuse_unlike(units_of("n0", "n0", "n1"))
