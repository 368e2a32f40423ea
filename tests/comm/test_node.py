"""The description of a machine, from test files in place of /proc and /sys/fs/cgroup."""

import os
import platform
from pathlib import Path

import pytest

from flora_hpc.comm.node import node

MEMINFO = "MemFree: 5 kB\nMemTotal:       24684092 kB\n"
CPUINFO = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9654 96-Core Processor\nprocessor\t: 1\n"
WITHOUT_NAME = platform.processor() or platform.machine()


def seen(folder: Path, meminfo: str | None, cpuinfo: str | None, limit: str | None) -> tuple[str, int | None, int | None]:
    proc, groups = folder / "proc", folder / "groups"
    (proc / "self").mkdir(parents=True)
    groups.mkdir()
    (proc / "self" / "cgroup").write_text("0::/\n")
    for file, text in ((proc / "meminfo", meminfo), (proc / "cpuinfo", cpuinfo), (groups / "memory.max", limit)):
        if text is not None:
            file.write_text(text)
    machine = node(proc, groups)
    assert machine.num_cores == os.cpu_count()
    return machine.processor, machine.memory_bytes, machine.memory_limit_bytes


@pytest.mark.parametrize(
    ("meminfo", "cpuinfo", "limit", "expected"),
    [
        (MEMINFO, CPUINFO, None, ("AMD EPYC 9654 96-Core Processor", 24684092 * 1024, None)),
        (MEMINFO, "cpu\t\t: POWER9, altivec supported\n", "1000", ("POWER9, altivec supported", 24684092 * 1024, 1000)),
        (MEMINFO, "processor\t: 0\nCPU implementer\t: 0x41\n", str(2**50), (WITHOUT_NAME, 24684092 * 1024, None)),
        (None, None, None, (WITHOUT_NAME, None, None)),
        (None, None, "1000", (WITHOUT_NAME, None, 1000)),
        ("MemTotal: many kB\n", "model name\t:\n", "", (WITHOUT_NAME, None, None)),
        ("MemTotal:\nMemTotal: 5\n", ":::\n", "max", (WITHOUT_NAME, None, None)),
    ],
)
def test_what_is_missing_or_no_number_is_left_out(
    tmp_path: Path, meminfo: str | None, cpuinfo: str | None, limit: str | None, expected: tuple[str, int | None, int | None]
) -> None:
    assert seen(tmp_path, meminfo, cpuinfo, limit) == expected


def test_where_there_is_no_proc(tmp_path: Path) -> None:
    machine = node(tmp_path / "proc", tmp_path / "groups")
    assert (machine.processor, machine.memory_bytes, machine.memory_limit_bytes) == (WITHOUT_NAME, None, None)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_bytes(b"\xff\xfe")
    (tmp_path / "cpuinfo").mkdir()
    assert node(tmp_path, tmp_path / "groups").memory_bytes is None
