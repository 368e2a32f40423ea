"""Read the limits of cores and memory that control groups set for this process.

The affinity of a process does not show a quota: with half a core, it still lists all cores.
"""

from collections.abc import Iterator
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
V1_MOUNTS = {"cpu": ("cpu,cpuacct", "cpu", "cpuacct,cpu"), "memory": ("memory",)}  # by controller
NO_LIMIT = 2**60  # bytes: version 1 writes a number from here on for no limit


def quotas(proc: Path = PROC, groups: Path = GROUPS) -> dict[str, float]:
    """Cores by folder, for each control group (version 1 or 2) with a quota, from this process's group up to the root.

    A container may see the outside path of its group, which does not exist inside. Then only the root counts.
    """
    cores = {}
    for folder in folders(proc, groups, "cpu"):
        quota = of_version_2(folder) or of_version_1(folder)
        if quota is not None:
            cores[_name(folder)] = quota
    return cores


def _name(folder: Path) -> str:
    """A folder's name and inode: in two containers one name may mean different groups."""
    facts = folder.stat()
    return f"{folder} {facts.st_dev}:{facts.st_ino}"


def memory_limit(proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """The lowest limit of this process's control groups (version 1 or 2) up to the root, in bytes. None without a limit."""
    files = (folder / name for folder in folders(proc, groups, "memory") for name in ("memory.max", "memory.limit_in_bytes"))
    limits = [int(text) for text in map(text_of, files) if text.isascii() and text.isdecimal()]
    return min((limit for limit in limits if 0 < limit < NO_LIMIT), default=None)


def folders(proc: Path, groups: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control groups that may hold a limit of this controller."""
    for line in text_of(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2) if line.count(":") > 1 else ("", "none", "")
        if controllers and controller not in controllers.split(","):
            continue
        roots = [groups / name for name in V1_MOUNTS[controller]] if controllers else [groups, groups / "unified"]
        for root in {root.resolve() for root in roots if root.is_dir()}:
            inside = [part for part in Path(path).parts if part not in ("/", "..")]
            for depth in range(len(inside), -1, -1):
                yield root.joinpath(*inside[:depth])


def of_version_2(folder: Path) -> float | None:
    """Cores by cpu.max, which holds microseconds and a period, or 'max' and a period."""
    return cores_of(text_of(folder / "cpu.max").split())


def of_version_1(folder: Path) -> float | None:
    """Cores by cpu.cfs_quota_us, which holds microseconds, or -1 for no quota."""
    return cores_of([text_of(folder / "cpu.cfs_quota_us"), text_of(folder / "cpu.cfs_period_us")])


def cores_of(words: list[str]) -> float | None:
    """Microseconds divided by the period: ['50000', '100000'] -> 0.5."""
    if len(words) != 2 or not all(word.isdecimal() and int(word) > 0 for word in words):
        return None
    return int(words[0]) / int(words[1])


def share(machine: str, ranks: list[tuple[str, dict[str, float]]], quotas: dict[str, float]) -> float | None:
    """Cores that one rank may use: each of its `quotas` divided by the ranks in that group, and the least of these.

    `ranks` has the machine and the quotas of every rank, this rank included. None without a quota.
    """
    shares = [
        cores / max(1, sum(rank_machine == machine and group in rank_quotas for rank_machine, rank_quotas in ranks))
        for group, cores in quotas.items()
    ]
    return min(shares, default=None)


def text_of(file: Path) -> str:
    """A short file's text; empty where it cannot be read."""
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
