"""How many cores and how much memory the control groups around this process let it use.

A quota of half a core is no set of cores: affinity has all.
"""

from collections.abc import Iterator
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
V1_MOUNTS = {"cpu": ("cpu,cpuacct", "cpu", "cpuacct,cpu"), "memory": ("memory",)}  # by controller
NO_LIMIT = 2**60  # bytes, from which version 1 means that there is none


def quotas(proc: Path = PROC, groups: Path = GROUPS) -> dict[str, float]:
    """Cores by the folder of each control group that has a quota, of version 1 or 2, from this process's own group up to the root.

    A container may see the path that its group has outside, where that does not exist inside; then the root counts alone.
    """
    cores = {}
    for folder in folders(proc, groups, "cpu"):
        quota = of_version_2(folder) or of_version_1(folder)
        if quota is not None:
            cores[_name(folder)] = quota
    return cores


def _name(folder: Path) -> str:
    """A folder's name and number: containers see other groups under one name."""
    facts = folder.stat()
    return f"{folder} {facts.st_dev}:{facts.st_ino}"


def memory_limit(proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """Bytes: the least limit of this process's control groups, of version 1 or 2, up to the root. None without one."""
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
    """cpu.max holds microseconds and a period, or 'max' and a period."""
    return cores_of(text_of(folder / "cpu.max").split())


def of_version_1(folder: Path) -> float | None:
    """cpu.cfs_quota_us holds microseconds, or -1 for none."""
    return cores_of([text_of(folder / "cpu.cfs_quota_us"), text_of(folder / "cpu.cfs_period_us")])


def cores_of(words: list[str]) -> float | None:
    """['50000', '100000'] -> 0.5."""
    if len(words) != 2 or not all(word.isdecimal() and int(word) > 0 for word in words):
        return None
    return int(words[0]) / int(words[1])


def share(machine: str, everyone: list[tuple[str, dict[str, float]]], own: dict[str, float]) -> float | None:
    """Cores that one rank may use: the least quota around it, divided by the ranks within the same group. None without a quota.

    `everyone` has the machine and the quotas of each rank, this one among them.
    """
    shares = [
        cores / max(1, sum(there == machine and group in theirs for there, theirs in everyone)) for group, cores in own.items()
    ]
    return min(shares, default=None)


def text_of(file: Path) -> str:
    """A short file's text; nothing where it cannot be read."""
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
