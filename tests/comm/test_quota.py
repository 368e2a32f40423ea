"""Limits of control groups of both versions, from test files."""

from pathlib import Path

import pytest

from flora_hpc.comm import quota


def write(folder: Path, cgroup: str, files: dict[str, str]) -> None:
    """`folder`/proc and `folder`/groups, in place of /proc and /sys/fs/cgroup."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "self" / "cgroup").write_text(cgroup)
    groups = folder / "groups"
    groups.mkdir()
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)


def quotas_of(folder: Path, cgroup: str, files: dict[str, str]) -> dict[str, float]:
    """The quotas by path below /sys/fs/cgroup, when /proc/self/cgroup is `cgroup`."""
    write(folder, cgroup, files)
    proc, groups = folder / "proc", folder / "groups"
    named = {name.rpartition(" ")[0]: cores for name, cores in quota.quotas(proc, groups).items()}
    return {str(Path(path).relative_to(groups)): cores for path, cores in named.items()}


V1 = "9:name=systemd:/\n4:memory:/job\n2:cpu,cpuacct:/job/step\n0::/\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/job/step\n", {"job/cpu.max": "150000 100000\n", "job/step/cpu.max": "max 100000\n"}, {"job": 1.5}),
        ("0::/job/step\n", {"job/cpu.max": "400000 100000\n", "job/step/cpu.max": "25000 50000"}, {"job": 4.0, "job/step": 0.5}),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, {".": 0.5}),  # a container with its own view
        ("0::/docker/abc\n", {"cpu.max": "50000 100000\n"}, {".": 0.5}),  # a container with the path outside
        ("0::/../other\n", {"cpu.max": "50000 100000\n"}, {".": 0.5}),
        (
            V1,
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "50000", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"},
            {"cpu,cpuacct/job": 0.5},
        ),
        (V1, {"cpu/job/step/cpu.cfs_quota_us": "-1\n", "cpu/job/step/cpu.cfs_period_us": "100000"}, {}),
        ("2:cpu:/q\n", {"cpu/q/cpu.cfs_quota_us": "300000\n", "cpu/q/cpu.cfs_period_us": "200000"}, {"cpu/q": 1.5}),
        ("3:cpuset:/q\n", {"cpuset/q/cpu.cfs_quota_us": "1", "cpuset/q/cpu.cfs_period_us": "100000"}, {}),
        ("1:cpu:/q\n0::/q\n", {"unified/q/cpu.max": "100000 100000"}, {"unified/q": 1.0}),
        ("", {}, {}),
        ("nonsense", {"cpu.max": "?"}, {}),
        ("0::/\n", {"cpu.max": "0 0"}, {}),
    ],
)
def test_every_level_above_a_process_counts(tmp_path: Path, cgroup: str, files: dict[str, str], expected: dict[str, float]) -> None:
    assert quotas_of(tmp_path, cgroup, files) == expected


NONE = "9223372036854771712\n"  # what version 1 says where there is no limit


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/job/step\n", {"job/memory.max": "4000\n", "job/step/memory.max": "max\n"}, 4000),
        ("0::/job/step\n", {"job/memory.max": "4000\n", "job/step/memory.max": "3000\n"}, 3000),
        ("0::/docker/abc\n", {"memory.max": "5000"}, 5000),  # a container with the path outside
        (V1, {"memory/job/memory.limit_in_bytes": "6000\n", "memory/memory.limit_in_bytes": NONE}, 6000),
        (V1, {"memory/job/memory.limit_in_bytes": NONE}, None),
        (V1, {"cpu,cpuacct/job/memory.limit_in_bytes": "6000"}, None),
        ("4:memory:/q\n0::/q\n", {"memory/q/memory.limit_in_bytes": "7000", "unified/q/memory.max": "6000"}, 6000),
        ("0::/\n", {"memory.max": "-1"}, None),
        ("0::/\n", {"memory.max": "0"}, None),
        ("0::/\n", {"memory.max": "many"}, None),
        ("nonsense", {}, None),
        ("", {}, None),
    ],
)
def test_the_least_limit_of_memory_counts(tmp_path: Path, cgroup: str, files: dict[str, str], expected: int | None) -> None:
    write(tmp_path, cgroup, files)
    assert quota.memory_limit(tmp_path / "proc", tmp_path / "groups") == expected


@pytest.mark.parametrize(
    ("everyone", "expected"),
    [
        ([("node", {"/job": 3.0})], 3.0),
        ([("node", {"/job": 3.0}), ("node", {"/job": 3.0}), ("other", {"/job": 3.0})], 1.5),
        ([("node", {"/job": 8.0, "/job/a": 2.0}), ("node", {"/job": 8.0, "/job/b": 2.0})], 2.0),  # a group for each task
        ([("node", {"/job": 3.0, "/job/a": 2.0}), ("node", {"/job": 3.0, "/job/b": 2.0})], 1.5),
        ([("node", {})], None),
    ],
)
def test_ranks_in_one_group_share_its_quota(everyone: list[tuple[str, dict[str, float]]], expected: float | None) -> None:
    assert quota.share("node", everyone, everyone[0][1]) == expected
