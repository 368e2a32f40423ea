"""What the machine of this rank is: processor, cores, memory."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from flora_hpc.comm import quota
from flora_hpc.comm.quota import GROUPS, PROC, text_of


@dataclass(frozen=True)
class Node:
    """A machine as one process sees it."""

    processor: str
    num_cores: int
    memory_bytes: int | None  # of the machine; None where it does not say
    memory_limit_bytes: int | None  # of the control groups around the process, where that is lower


def node(proc: Path = PROC, groups: Path = GROUPS) -> Node:
    """This machine. Nothing that is missing or unreadable raises: it is left out."""
    total, limit = memory(proc), quota.memory_limit(proc, groups)
    lower = limit if limit is not None and (total is None or limit < total) else None
    return Node(processor(proc), os.cpu_count() or 1, total, lower)


def memory(proc: Path = PROC) -> int | None:
    """Bytes of the machine's memory."""
    for line in text_of(proc / "meminfo").splitlines():
        words = line.split()
        if words[:1] == ["MemTotal:"] and len(words) == 3 and words[1].isdecimal():
            return int(words[1]) * 1024
    return None


def processor(proc: Path = PROC) -> str:
    """The model's name as Linux gives it; on processors that have none, what kind of machine it is."""
    for line in text_of(proc / "cpuinfo").splitlines():
        name, _, text = line.partition(":")
        if name.strip() in ("model name", "cpu model", "cpu", "Model") and text.strip():
            return text.strip()
    return platform.processor() or platform.machine() or "unknown"
