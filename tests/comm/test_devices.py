import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flora_hpc.comm import devices, quota
from flora_hpc.comm.launch import Launch
from flora_hpc.config import CommConfig
from flora_hpc.errors import UserError

Threads = Callable[..., list[int]]
Gpus = Callable[[int], list[torch.device]]


@pytest.fixture
def num_threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    """`num_threads((host, cores), ...)`: the threads that each rank takes, when rank r runs on `host` and may use `cores`."""
    set_to: list[int] = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)

    def share(*ranks: tuple[str, range], launcher: str = "none") -> list[int]:
        sent: list[bytes] = []
        heard: list[list[bytes]] = []

        def allgather(data: bytes) -> list[bytes]:
            sent.append(data)
            return heard[0] if heard else [data]

        def everyone() -> list[int]:
            shares = []
            for host, cores in ranks:
                monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
                monkeypatch.setattr(os, "sched_getaffinity", lambda process, cores=cores: set(cores))
                shares.append(devices.share_cores(SimpleNamespace(allgather=allgather), Launch(launcher)))
            return shares

        everyone()  # to learn what each rank sends
        heard.append(sent[: len(ranks)])
        set_to.clear()
        shares = everyone()
        assert set_to == shares
        return shares

    return share


def test_a_rank_alone_takes_all_its_cores(num_threads: Threads) -> None:
    assert num_threads(("node1", range(8))) == [8]


def test_ranks_with_the_same_cores_share_them(num_threads: Threads) -> None:
    assert num_threads(*[("node1", range(8))] * 3) == [2, 2, 2]


def test_a_bound_rank_keeps_its_own_cores(num_threads: Threads) -> None:
    assert num_threads(("node1", range(0, 6)), ("node1", range(6, 8))) == [6, 2]


def test_the_same_cores_of_another_node_are_others(num_threads: Threads) -> None:
    assert num_threads(("node1", range(8)), ("node1", range(8)), ("node2", range(8))) == [4, 4, 8]


def test_more_ranks_than_cores_get_one_thread_each(num_threads: Threads) -> None:
    assert num_threads(*[("node1", range(2))] * 3) == [1, 1, 1]


def test_slurms_cpus_per_task_is_an_upper_bound(num_threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert num_threads(("node1", range(8)), launcher="slurm") == [3]
    assert num_threads(("node1", range(2)), launcher="slurm") == [2]
    assert num_threads(("node1", range(8))) == [8]


@pytest.mark.parametrize(("cores", "threads"), [(0.5, [1, 1]), (2.0, [1, 1]), (5.9, [2, 2]), (64.0, [4, 4])])
def test_a_quota_is_an_upper_bound_that_ranks_of_a_node_share(
    num_threads: Threads, monkeypatch: pytest.MonkeyPatch, cores: float, threads: list[int]
) -> None:
    monkeypatch.setattr(quota, "quotas", lambda: {"/job": cores})
    assert num_threads(*[("node1", range(8))] * 2) == threads
    assert num_threads(("node1", range(0, 4)), ("node1", range(4, 8))) == threads


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    """`gpus(n)`: PyTorch sees n GPUs; returns the list of devices made current."""

    def see(count: int) -> list[torch.device]:
        current: list[torch.device] = []
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        return current

    return see


@pytest.mark.parametrize("wanted", ["auto", "cpu"])
def test_without_a_gpu_it_is_the_cpu(gpus: Gpus, wanted: str) -> None:
    gpus(0)
    assert devices.pick(Launch(), CommConfig(device=wanted)) == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_refused_with_the_cure(gpus: Gpus) -> None:
    gpus(0)
    with pytest.raises(UserError, match=r"comm\.device: 'cuda' .* sees no GPU here; set comm\.device: auto or cpu"):
        devices.pick(Launch(), CommConfig(device="cuda"))


def test_cpu_leaves_the_gpus_alone(gpus: Gpus) -> None:
    current = gpus(2)
    assert devices.pick(Launch(), CommConfig(device="cpu")) == torch.device("cpu")
    assert current == []


@pytest.mark.parametrize(("local_rank", "gpu"), [(0, "cuda:0"), (1, "cuda:1"), (2, "cuda:0"), (3, "cuda:1")])
def test_ranks_of_a_node_take_gpus_in_turn(gpus: Gpus, local_rank: int, gpu: str) -> None:
    """The local rank decides, not the rank."""
    current = gpus(2)
    assert devices.pick(Launch("slurm", rank=7, size=8, local_rank=local_rank, local_size=4), CommConfig()) == torch.device(gpu)
    assert current == [torch.device(gpu)]


def test_a_rank_that_sees_only_its_own_gpu_takes_it(gpus: Gpus) -> None:
    """As with srun --gpus-per-task=1: local rank 1 sees its GPU as number 0."""
    gpus(1)
    assert devices.pick(Launch("slurm", 1, 2, 1, 2), CommConfig()) == torch.device("cuda:0")


@pytest.fixture
def properties(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every GPU has 1,000 bytes and a uuid that follows from its index."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=1000, uuid=f"uuid{device.index}")
    )


def test_every_rank_learns_every_place(properties: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs rank 1; rank 0 sends the same values with another rank and GPU."""
    monkeypatch.setattr(socket, "gethostname", lambda: "node2")
    launch = Launch("slurm", rank=1, size=2, local_rank=0, local_size=1)

    def other(data: bytes) -> bytes:
        return data.replace(b'"rank": 1', b'"rank": 0').replace(b"uuid0", b"uuid7")

    comm = SimpleNamespace(rank=1, allgather=lambda data: [other(data), data])
    assert devices.places(comm, launch, torch.device("cuda:0"), 4) == [
        devices.RankPlace(0, "node2", 0, "cuda:0 Some GPU", 4),
        devices.RankPlace(1, "node2", 0, "cuda:0 Some GPU", 4),
    ]
    assert devices.places(comm, launch, torch.device("cpu"), 4)[1].device == "cpu"


def test_ranks_that_share_a_gpu_are_told_so(properties: None) -> None:
    """The GPU counts, not its index: two ranks may call different GPUs cuda:0."""
    comm = SimpleNamespace(rank=0, allgather=lambda data: [data, data, data.replace(b"uuid0", b"uuid7")])
    names = [place.device for place in devices.places(comm, Launch(), torch.device("cuda:0"), 4)]
    assert names == ["cuda:0 Some GPU shared by 2 ranks"] * 2 + ["cuda:0 Some GPU"]
    assert devices.sharing(comm, torch.device("cuda:0")) == 2
    assert devices.sharing(comm, torch.device("cpu")) == 1


def test_the_same_name_on_another_machine_is_another_machine(num_threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers on two nodes may have one host name; the boot ids of the machines differ."""
    starts = iter(["a", "b"] * 2)
    monkeypatch.setattr(quota, "text_of", lambda file: next(starts) if file.name == "boot_id" else "")
    assert num_threads(("node", range(8)), ("node", range(8))) == [8, 8]


@pytest.mark.parametrize(("text", "threads"), [("3", [3]), ("2,4", [2]), ("99", [8]), ("0", [8]), ("many", [8]), ("", [8])])
def test_the_users_omp_num_threads_is_an_upper_bound(
    num_threads: Threads, monkeypatch: pytest.MonkeyPatch, text: str, threads: list[int]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert num_threads(("node1", range(8))) == threads


@pytest.mark.parametrize(
    ("before", "value", "local_size", "wished"),
    [
        ("", "1", 2, None),  # torchrun's own
        ("OMP_NUM_THREADS=1\0", "1", 2, 1),
        ("", "4", 2, 4),  # torchrun sets nothing but 1
        ("", "1", 1, 1),  # and only for several ranks
    ],
)
def test_what_torchrun_sets_is_not_the_users_wish(
    tmp_path: Path, before: str, value: str, local_size: int, wished: int | None
) -> None:
    (tmp_path / "environ").write_text("HOME=/root\0MY_OMP_NUM_THREADS=1\0" + before)
    torchrun = Launch("torchrun", 0, 2, 0, local_size)
    assert devices.threads_of_user(torchrun, {"OMP_NUM_THREADS": value}, tmp_path / "environ") == wished
    assert devices.threads_of_user(torchrun, {}, tmp_path / "environ") is None


# --- memory for a group of clients


GIB = 2**30


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`node({group: (memory.max, cpuset)})`: bytes per core in /job/step of a node with 16 GiB and 8 cores."""

    def measure(limits: dict[str, tuple[str, str]]) -> int:
        proc, groups = tmp_path / "proc", tmp_path / "groups"
        (proc / "self").mkdir(parents=True)
        (proc / "meminfo").write_text(f"MemTotal: {16 * 2**20} kB\nMemFree: 1 kB\n")
        (proc / "self" / "cgroup").write_text("4:memory:/elsewhere\n0::/job/step\n")
        for path, (memory, cores) in limits.items():
            (groups / path).mkdir(parents=True, exist_ok=True)
            (groups / path / "memory.max").write_text(memory + "\n")
            (groups / path / "cpuset.cpus.effective").write_text(cores + "\n")
        monkeypatch.setattr(os, "cpu_count", lambda: 8)
        return devices.memory_per_core(proc, groups)

    return measure


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 2 * GIB),
        ({"job": ("max", "0-7"), "job/step": ("max", "0")}, 2 * GIB),
        ({"job": (str(4 * GIB), "0-2,5")}, GIB),  # four cores
        ({"job": (str(4 * GIB), "0-3"), "job/step": (str(4 * GIB), "0")}, GIB),  # one rank, bound to a core
        ({"": (str(4 * GIB), "")}, GIB // 2),  # a container: its root
        ({"job": (str(16 * GIB), "0-3")}, 2 * GIB),  # more than a part of the node as large as its cores
    ],
)
def test_memory_per_core_is_that_of_the_tightest_group(
    node: Callable[..., int], limits: dict[str, tuple[str, str]], expected: int
) -> None:
    assert node(limits) == expected


def test_room_is_half_and_a_gpu_is_told_apart(properties: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "memory_per_core", lambda: 100)
    assert devices.room(torch.device("cpu")) == (50, False)
    assert devices.room(torch.device("cuda", 0)) == (500, True)
    assert devices.room(torch.device("cuda", 0), num_sharing=2) == (250, True)


def test_all_ranks_take_the_least_room() -> None:
    others = SimpleNamespace(allgather=lambda data: [data, b"[30, true]", b"[70, true]"])
    assert devices.least_room(others, devices.Room(50, gpu=True)) == devices.Room(30, gpu=True)
    assert devices.least_room(others, devices.Room(20, gpu=False)) == devices.Room(20, gpu=True), (
        "one GPU decides how groups are cut"
    )
