"""Check the machine at every start, at no cost: each message names the wrong variable and the cure."""

import os
import socket
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from flora_hpc.comm.launch import Launch
from flora_hpc.comm.mpilibrary import Library
from flora_hpc.errors import UserError

SHM = Path("/dev/shm")
MPICH_BYTES = 1_100_000  # of shared memory, mapped by MPICH 5 for each rank; with less, MPICH ends with 'Bus error'
UCX_BYTES = 6 * 2**20  # of shared memory, used by MPICH 5 and UCX for each rank; with less, UCX at times ends with SIGSEGV
UCX_SPARE_BYTES = 8 * 2**20


def check(launch: Launch, backend: str, environ: Mapping[str, str] = os.environ) -> None:
    """Raise UserError for an environment variable that stops every job, or that would have no effect."""
    check_threads(environ)
    if launch.size > 1 and backend in ("gloo", "nccl"):
        check_interfaces(f"{backend.upper()}_SOCKET_IFNAME", environ, [name for _, name in socket.if_nameindex()])


def check_threads(environ: Mapping[str, str]) -> None:
    """Raise UserError unless OMP_NUM_THREADS is a list of whole numbers from 1 on, or is not set."""
    text = environ.get("OMP_NUM_THREADS", "")
    if text.strip() and not all(part.strip().isdecimal() and int(part) > 0 for part in text.split(",")):
        raise UserError(
            f"OMP_NUM_THREADS is {text!r}, but must be a number of threads such as 4; correct it, or unset OMP_NUM_THREADS"
        )


def check_interfaces(variable: str, environ: Mapping[str, str], interfaces: list[str]) -> None:
    """Raise UserError when the variable names network interfaces that this machine does not have.

    Gloo takes whole names. NCCL takes the beginnings of names, whole names behind `=`, and excluded names behind `^`.
    """
    text = environ.get(variable, "")
    if not text or text.startswith("^"):
        return
    exact = variable.startswith("GLOO") or text.startswith("=")
    names = [name.partition(":")[0] for name in text.removeprefix("=").split(",") if name]
    exists = [any(each == name or (not exact and each.startswith(name)) for each in interfaces) for name in names]
    if all(exists) if variable.startswith("GLOO") else any(exists):
        return
    raise UserError(
        f"{variable} is {text!r}, but {socket.gethostname()} has the network interfaces {', '.join(interfaces)}; "
        f"correct it, or unset {variable}"
    )


def check_shared_memory(launch: Launch, library: Library, folder: Path = SHM) -> None:
    """Raise UserError when shared memory is too small for MPICH with the ranks of this node."""
    if library.family != "MPICH" or launch.local_size == 1:
        return
    size, free = room(folder)
    need = MPICH_BYTES * launch.local_size
    if size < need or free < MPICH_BYTES:
        raise UserError(
            f"{folder} has {mib(size)} MiB, {mib(free)} of them free, but {library.name} needs {mib(need)} for "
            f"{launch.local_size} ranks: make it larger (docker run --shm-size=1g, or mount -o remount,size=1g {folder}), "
            "remove files that dead jobs left there, or set comm.backend: gloo and start with torchrun or srun --mpi=none"
        )


def spare_shared_memory(
    launch: Launch, library: Library, environ: MutableMapping[str, str] = os.environ, folder: Path = SHM
) -> None:
    """Forbid UCX, which sends MPICH's messages, to use small shared memory. MPICH itself still uses it."""
    needs = UCX_BYTES * launch.local_size + UCX_SPARE_BYTES
    if library.family == "MPICH" and launch.local_size > 1 and room(folder)[0] < needs:
        environ.setdefault("UCX_TLS", "^posix")


def room(folder: Path) -> tuple[int, int]:
    """Total and free bytes of a file system; 2^63 for both where there is no such folder."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return 2**63, 2**63
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


def mib(num_bytes: int) -> str:
    """Bytes in MiB, as text: 1100000 -> '1.0'."""
    return f"{num_bytes / 2**20:.1f}"
