"""The contract of every backend, in real processes; each world is started once, by backend_worker.py."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flora_hpc import plugins
from tests import forks

WORKER = Path(__file__).with_name("backend_worker.py")


@dataclass(frozen=True)
class Start:
    """How a world is started."""

    backend: str
    launcher: str  # as launch.detect names it; "mpi" for either MPI flavour
    size: int
    one_core: bool = False  # all ranks share one core


WORLDS = [
    pytest.param(Start("serial", "none", 1), id="serial"),
    pytest.param(Start("mpi", "mpi", 2), id="mpi", marks=pytest.mark.mpi),
    pytest.param(Start("mpi", "mpi", 3, one_core=True), id="mpi-crowded", marks=pytest.mark.mpi),
    pytest.param(Start("gloo", "torchrun", 2), id="gloo-torchrun"),
    pytest.param(Start("gloo", "mpi", 2), id="gloo-mpiexec", marks=pytest.mark.mpi),
    pytest.param(Start("nccl", "torchrun", 1), id="nccl", marks=pytest.mark.gpu),
]


@dataclass(frozen=True)
class World:
    """What the ranks of a world wrote, by rank."""

    start: Start
    ranks: list[dict[str, Any]]

    def each(self, key: str) -> list[Any]:
        return [rank[key] for rank in self.ranks]


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, python: list[str]) -> World:
    start: Start = request.param
    if start.backend == "nccl" and torch.cuda.device_count() == 0:
        pytest.skip("no GPU")
    if start.launcher == "mpi":
        launcher = [*request.getfixturevalue("mpiexec"), "-n", str(start.size), *python]
    else:
        launcher = forks.torchrun(start.size) if start.launcher == "torchrun" else python
    folder = tmp_path_factory.mktemp(start.backend)
    words = [start.backend, folder, *["one core"] * start.one_core]
    done = subprocess.run([*launcher, WORKER, *words], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    files = sorted(folder.glob("*.json"))
    assert [file.stem for file in files] == [str(rank) for rank in range(start.size)]
    return World(start, [json.loads(file.read_text()) for file in files])


def test_every_backend_is_tried() -> None:
    """A new file in comm/backends needs a line in WORLDS."""
    assert {world.values[0].backend for world in WORLDS} == set(plugins.members("backends"))


def test_the_launcher_tells_each_process_its_place(world: World) -> None:
    size = world.start.size
    launcher = world.ranks[0]["launch"]["launcher"]
    assert launcher in {"mpi": ("mpich", "openmpi")}.get(world.start.launcher, (world.start.launcher,))
    assert world.each("launch") == [
        {"launcher": launcher, "rank": rank, "size": size, "local_rank": rank, "local_size": size} for rank in range(size)
    ]


def test_the_communicator_agrees_with_the_launcher(world: World) -> None:
    size = world.start.size
    assert world.each("name") == [world.start.backend] * size
    assert world.each("rank") == list(range(size))
    assert world.each("size") == [size] * size


def test_allreduce_sums_whole_numbers_exactly(world: World) -> None:
    """Rank r gives [[r + 1, -r], [2^60 + r, 0]]; float64 would lose the last digits of the third."""
    right = {
        1: [[1, 0], [2**60, 0]],
        2: [[1 + 2, -1], [2**61 + 1, 0]],
        3: [[1 + 2 + 3, -1 - 2], [3 * 2**60 + 1 + 2, 0]],
    }[world.start.size]
    assert world.each("allreduce") == [right] * world.start.size


def test_broadcast_gives_everyone_the_bits_of_rank_0(world: World) -> None:
    bits = np.array([0.1, np.nan, -0.0], np.float32).tobytes().hex()
    assert world.each("broadcast") == [bits] * world.start.size


def test_allgather_takes_unequal_lengths(world: World) -> None:
    """Rank r gives r letters; rank 0 gives none."""
    assert world.each("allgather") == [["", "a", "ab"][: world.start.size]] * world.start.size


def test_allgather_takes_nothing_from_everyone(world: World) -> None:
    assert world.each("allgather of nothing") == [[""] * world.start.size] * world.start.size


def test_gather_gives_rank_0_everything_and_others_none(world: World) -> None:
    assert world.each("gather") == [["zzz", "zz", "z"][: world.start.size]] + [None] * (world.start.size - 1)


@pytest.mark.parametrize("key", ["exchange", "exchange in pieces"])
def test_an_exchange_takes_unequal_lengths(key: str, world: World) -> None:
    """Rank s sends 's>r' to rank r, s + r times; rank 0 sends nothing to itself."""
    size = world.start.size
    assert world.each(key) == [[f"{sender}>{rank}" * (sender + rank) for sender in range(size)] for rank in range(size)]


def test_an_exchange_takes_nothing_from_everyone(world: World) -> None:
    assert world.each("exchange of nothing") == [[""] * world.start.size] * world.start.size


def test_an_exchange_may_have_one_part_only(world: World) -> None:
    size = world.start.size
    *others, last = world.each("exchange in one direction")
    assert others == [[""] * size] * (size - 1)
    assert last == ["abc"] + [""] * (size - 1)


def test_an_exchange_takes_megabytes(world: World) -> None:
    assert world.each("exchange of megabytes") == [[True] * world.start.size] * world.start.size


def test_nobody_leaves_a_barrier_before_everyone_came(world: World) -> None:
    assert world.each("present after barriers") == [[world.start.size] * 20] * world.start.size


@pytest.mark.parametrize(("key", "num_colors"), [("parts", 2), ("parts of parts", None)])
def test_ranks_of_one_color_are_a_world_of_their_own(key: str, num_colors: int | None, world: World) -> None:
    size = world.start.size
    for rank, part in enumerate(world.each(key)):
        ranks = [other for other in range(size) if other % (num_colors or size) == rank % (num_colors or size)]
        own = ranks.index(rank)
        assert (part["rank"], part["size"]) == (own, len(ranks))
        assert part["allreduce"] == [sum(10**number for number in range(len(ranks)))]
        assert part["broadcast"] == [ranks[0]]
        assert part["allgather"] == [str(other) for other in ranks]
        assert part["gather"] == ([str(other) for other in ranks] if own == 0 else None)
        assert part["exchange"] == [f"{sender}>{own}" * (sender + own) for sender in range(len(ranks))]


@pytest.mark.parametrize("key", ["waited", "waited in an exchange"])
def test_ranks_that_come_early_to_a_collective_are_said_to_have_waited(key: str, world: World) -> None:
    """The last rank comes a second late; a world of one waits for nobody."""
    for waited in world.each(key):
        *early, late = waited
        assert min(early, default=1.0) > 0.5 > late


def test_ranks_that_share_a_core_sleep_while_they_wait(world: World) -> None:
    """The last rank comes a second late. Where nobody else needs its core, an MPI library may take it for all this time."""
    if world.start.one_core:
        assert max(world.each("seconds on a core while waiting")) < 0.25


def test_together_gives_each_rank_its_own_result(world: World) -> None:
    assert world.each("all agree") == [0, 10, 20][: world.start.size]


def test_a_mistake_on_one_rank_is_known_to_all_with_the_rank(world: World) -> None:
    """In a world of one there is no other rank to tell it from."""
    size = world.start.size
    where = "" if size == 1 else f" (on rank {size - 1} of {size})"
    assert world.each("last one fails") == [f"there are no weights; fetch them{where}"] * size


def test_a_mistake_on_every_rank_names_none(world: World) -> None:
    assert world.each("all fail") == ["there are no weights; fetch them"] * world.start.size


def test_backend_serial_is_refused_in_a_larger_world(world: World) -> None:
    """Both sizes are named, on every rank."""
    size = world.start.size
    for rank in world.ranks:
        started = f"{rank['launch']['launcher']} started {size} processes, but backend 'serial' sees a world of 1: "
        assert rank["serial"].startswith(started) if size > 1 else rank["serial"] == ""
