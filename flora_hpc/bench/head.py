"""The head that every JSON result of `flora-hpc bench` begins with: what was measured, when, where, with which program."""

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flora_hpc.comm.node import node
from flora_hpc.versions import versions

SCHEMA = 1  # of the head; its keys stay, and new ones raise no number
KEYS = ("schema", "bench", "command", "time", "host", "cpu", "cores", "memory", "gpu", "versions", "commit")
GPUS = Path("/proc/driver/nvidia/gpus")  # of NVIDIA's driver
GIT_SECONDS = 10.0


def head(bench: str, command: Sequence[str] | None = None) -> dict[str, Any]:
    """The head of a result of `flora-hpc bench BENCH`, on this machine and at this time.

    `command` are the words after the program's name, by default those of this process.
    """
    machine = node()
    return {
        "schema": SCHEMA,
        "bench": bench,
        "command": shlex.join(["flora-hpc", *(sys.argv[1:] if command is None else command)]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "cpu": machine.processor,
        "cores": len(os.sched_getaffinity(0)),
        "memory": machine.memory_limit_bytes or machine.memory_bytes,
        "gpu": gpus(),
        "versions": versions(),
        "commit": commit(),
    }


def gpus(folder: Path = GPUS) -> list[str]:
    """Models of the GPUs that this process sees, by their number; without PyTorch, those of the machine."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    lines = [line for file in sorted(folder.glob("*/information")) for line in file.read_text().splitlines()]
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]


def commit(package: Path = Path(__file__).parent.parent) -> str | None:
    """The commit of this program's source, with `-dirty` where files differ from it; None for an installed package."""
    try:
        git(package, "ls-files", "--error-unmatch", "__init__.py")  # a package inside the repository of something else
        return git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def git(folder: Path, *words: str) -> str:
    """What git says about `folder`. Raises OSError or SubprocessError where it says nothing."""
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
    return done.stdout.strip()
