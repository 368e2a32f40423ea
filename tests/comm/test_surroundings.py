"""A wrong environment is refused before the job starts, with the variable and the cure."""

import os
from pathlib import Path

import pytest

from flora_hpc.comm import surroundings
from flora_hpc.comm.launch import Launch
from flora_hpc.comm.mpilibrary import Library
from flora_hpc.errors import UserError

MPICH = Library("MPICH", "5.0.2", frozenset({"pmi"}), "pmi")
OPENMPI = Library("Open MPI", "5.0.11", frozenset({"pmix"}), "pmix")
MIB = 2**20


@pytest.mark.parametrize("text", ["4", "4,2", " 8 ", "", "1, 1"])
def test_numbers_of_threads(text: str) -> None:
    surroundings.check_threads({"OMP_NUM_THREADS": text})
    surroundings.check_threads({})


@pytest.mark.parametrize("text", ["abc", "0", "-1", "4,", "4,0", "2.5", "4 2", "1e1"])
def test_what_is_no_number_of_threads_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^OMP_NUM_THREADS is '.*', but must be .* such as 4; correct it, or unset"):
        surroundings.check(Launch(), "serial", {"OMP_NUM_THREADS": text})


@pytest.mark.parametrize(
    ("variable", "text", "is_right"),
    [
        ("GLOO_SOCKET_IFNAME", "eth0", True),
        ("GLOO_SOCKET_IFNAME", "eth", False),
        ("GLOO_SOCKET_IFNAME", "eth0,ib0", True),
        ("GLOO_SOCKET_IFNAME", "eth0,ib9", False),  # gloo opens each
        ("NCCL_SOCKET_IFNAME", "eth", True),
        ("NCCL_SOCKET_IFNAME", "=eth", False),
        ("NCCL_SOCKET_IFNAME", "=eth0,ib9", True),
        ("NCCL_SOCKET_IFNAME", "^docker", True),
        ("NCCL_SOCKET_IFNAME", "eno,ib", True),
        ("NCCL_SOCKET_IFNAME", "eno", False),
        ("NCCL_SOCKET_IFNAME", "", True),
    ],
)
def test_a_network_interface_must_be_there(variable: str, text: str, is_right: bool) -> None:
    if is_right:
        surroundings.check_interfaces(variable, {variable: text}, ["lo", "eth0", "ib0"])
        return
    with pytest.raises(UserError, match=rf"^{variable} is '{text}', but .* has the network interfaces lo, eth0, ib0; correct it"):
        surroundings.check_interfaces(variable, {variable: text}, ["lo", "eth0", "ib0"])


def test_the_backend_decides_which_variable_counts() -> None:
    wrong = {"GLOO_SOCKET_IFNAME": "no-such-interface"}
    surroundings.check(Launch("slurm", 0, 2, 0, 2), "mpi", wrong)
    surroundings.check(Launch(), "gloo", wrong)
    with pytest.raises(UserError, match="GLOO_SOCKET_IFNAME"):
        surroundings.check(Launch("slurm", 0, 2, 0, 2), "gloo", wrong)


@pytest.mark.parametrize(
    ("size", "free", "ranks", "is_enough"),
    [
        (64 * 1024, 64 * 1024, 2, False),
        (MIB, MIB, 2, False),
        (2 * MIB, 2 * MIB, 2, False),
        (3 * MIB, 3 * MIB, 2, True),
        (64 * MIB, 64 * MIB, 2, True),
        (64 * MIB, 64 * MIB, 128, False),
        (64 * MIB, MIB, 2, False),
        (64 * 1024, 64 * 1024, 1, True),
    ],
)
def test_shared_memory_must_hold_mpichs_ranks(
    size: int, free: int, ranks: int, is_enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings, "room", lambda folder: (size, free))
    launch = Launch("mpich", 0, ranks, 0, ranks)
    surroundings.check_shared_memory(launch, OPENMPI)
    if is_enough:
        surroundings.check_shared_memory(launch, MPICH)
        return
    with pytest.raises(UserError, match=r"^/dev/shm has .* MiB, .* free, but MPICH 5.0.2 needs .*--shm-size.*comm.backend: gloo"):
        surroundings.check_shared_memory(launch, MPICH)


def test_ucx_leaves_a_small_shared_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "room", lambda folder: (16 * MIB, 16 * MIB))
    launch = Launch("mpich", 0, 2, 0, 2)
    for library, given, expected in (
        (MPICH, {}, {"UCX_TLS": "^posix"}),
        (MPICH, {"UCX_TLS": "tcp,self"}, {"UCX_TLS": "tcp,self"}),
        (OPENMPI, {}, {}),
    ):
        environ = dict(given)
        surroundings.spare_shared_memory(launch, library, environ)
        assert environ == expected
    monkeypatch.setattr(surroundings, "room", lambda folder: (64 * MIB, 0))
    environ = {}
    surroundings.spare_shared_memory(launch, MPICH, environ)
    assert environ == {}


def test_the_room_of_a_file_system_is_read(tmp_path: Path) -> None:
    size, free = surroundings.room(tmp_path)
    assert 0 < free <= size == os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    assert surroundings.room(tmp_path / "nowhere")[0] > 2**60
