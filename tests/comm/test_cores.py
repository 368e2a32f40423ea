"""Cores of ranks: who shares them, and whether there are enough."""

from collections.abc import Iterator

import pytest

from flora_hpc.comm import cores
from flora_hpc.comm.cores import Place


def on(machine: str, *numbers: int, **quotas: float) -> Place:
    return Place(machine, list(numbers), quotas)


@pytest.mark.parametrize(
    ("places", "shares"),
    [
        ([on("a", 0, 1)], [2]),
        ([on("a", 0, 1)] * 4, [0.5] * 4),
        ([on("a", 0, 1), on("b", 0, 1)], [2, 2]),  # other machines
        ([on("a", 0), on("a", 1, 2)], [1, 2]),  # bound by a launcher
        ([on("a", 0, 1, job=1.5)] * 2, [0.75] * 2),
        ([on("a", 0, job=1.5), on("a", 1, job=1.5)], [0.75] * 2),
        ([on("a", 0, 1, job=8.0)] * 2, [1] * 2),
        ([on("a", 0, job=1.0), on("b", 0, job=1.0)], [1, 1]),
    ],
)
def test_ranks_share_cores_and_quotas(places: list[Place], shares: list[float]) -> None:
    assert [cores.share(places, own) for own in places] == shares
    assert cores.crowded(places) == (min(shares) < 1)


def test_one_crowded_node_is_enough() -> None:
    """A collective that sleeps does not match one that polls, so all ranks must wait in the same way."""
    assert cores.crowded([on("a", 0), on("b", 0), on("b", 0)])


def test_every_rank_looks_at_each_place_a_few_times_only() -> None:
    """Comparing each of 4,096 places with each would take seconds."""

    class Counted(list[Place]):
        num_looks = 0

        def __iter__(self) -> Iterator[Place]:
            for place in super().__iter__():
                self.num_looks += 1
                yield place

    places = Counted(on(f"node{rank // 4}", rank % 4) for rank in range(4096))
    assert not cores.crowded(places)
    assert places.num_looks <= 4 * len(places)
