"""Describe the machine of this rank: processor, cores, memory."""

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
    memory_bytes: int | None  # of the machine; None where Linux does not give it
    memory_limit_bytes: int | None  # of the control groups around the process, where it is lower


def node(proc: Path = PROC, groups: Path = GROUPS) -> Node:
    """This machine. A missing or unreadable file raises no error: its value is left out."""
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
    """The name of the processor model in /proc/cpuinfo; where that has none, the kind of machine."""
    for line in text_of(proc / "cpuinfo").splitlines():
        name, _, text = line.partition(":")
        if name.strip() in ("model name", "cpu model", "cpu", "Model") and text.strip():
            return text.strip()
    return platform.processor() or platform.machine() or "unknown"
