"""Identify the MPI library that mpi4py loads, and check, before MPI is initialised, that the library understands the launcher.

Otherwise the library would start N worlds of one rank, end the process with its own error, or hang.
"""

import os
import re
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from flora_hpc import extras
from flora_hpc.comm.launch import Launch
from flora_hpc.errors import UserError

# A launcher connects its ranks through one of two protocols, PMI (1 or 2) or PMIx, or through none ("none").
SRUN_FLAG = {"pmi": "pmi2", "pmix": "pmix", "none": "none"}
OTHERWISE = " (brings mpiexec), or 'flora-hpc[mpi]' beside your cluster's MPI, or set comm.backend: gloo"  # without mpi4py
FAMILIES = (  # pattern in the version text, the library's name, the usual protocol of its builds
    (r"Open MPI v(\S+?),", "Open MPI", "pmix"),
    (r"CRAY MPICH version (\S+)", "Cray MPICH", ""),
    (r"MPICH Version:\s*(\S+)", "MPICH", "pmi"),
    (r"Intel\(R\) MPI Library (\S+)", "Intel MPI", "pmi"),
    (r"MVAPICH\S* Version\s*:\s*(\S+)", "MVAPICH", "pmi"),
)


class Library(NamedTuple):
    """An MPI library."""

    family: str
    version: str
    understands: frozenset[str]  # protocols; empty where they cannot be known from outside
    usual: str  # the protocol to advise; empty where there is no rule

    @property
    def name(self) -> str:
        """Such as 'MPICH 5.0.2'."""
        return f"{self.family} {self.version}".strip()


def module() -> Any:
    """mpi4py's MPI module with its library loaded, MPI not initialised. Raises UserError when either is missing."""
    extras.need("backend 'mpi'", "mpi4py", otherwise=OTHERWISE)
    try:
        import mpi4py

        mpi4py.rc(initialize=False, finalize=True)
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # without libmpi, versions of mpi4py raise different errors
        raise UserError(
            f"backend 'mpi': mpi4py found no MPI library ({' '.join(str(error).split())}); load your cluster's MPI module, "
            "set MPI4PY_LIBMPI=/path/to/libmpi.so, or pip install 'flora-hpc[mpich]'"
        ) from None
    return MPI


def loaded() -> Library:
    """The library that mpi4py loads here. Raises UserError when there is none."""
    text = module().Get_library_version()
    return identify(text, [Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line])


def identify(text: str, files: list[Path]) -> Library:
    """The library with this version text. `files` are mapped into the process."""
    for pattern, family, usual in FAMILIES:
        if match := re.search(pattern, text):
            version, has_pmix = match[1], any(file.name.startswith("libpmix.so") for file in files)
            if family == "Open MPI":
                old = version.startswith(("1.", "2.", "3.", "4."))
                return Library(family, version, frozenset({"pmix", "pmi"} if old and has_slurm_pmi(files) else {"pmix"}), "pmix")
            if family == "MPICH":
                return Library(family, version, frozenset({"pmi", "pmix"} if has_pmix else {"pmi"}), "pmix" if has_pmix else "pmi")
            return Library(family, version, frozenset(), usual)
    return Library(" ".join(text.split("\n")[0].split()) or "an unknown MPI library", "", frozenset(), "")


def has_slurm_pmi(files: list[Path]) -> bool:
    """Whether an Open MPI before version 5 has, or may have, Slurm's PMI; its plugins are in a folder beside libmpi."""
    parts = {
        part.name
        for file in files
        if file.name.startswith("libmpi.so")
        for folder in file.parent.glob("openmpi*")
        for part in folder.rglob("mca_pmix_*.so")
    }
    return not parts or bool(parts & {"mca_pmix_s1.so", "mca_pmix_s2.so"})


def offered_protocol(launch: Launch, environ: Mapping[str, str] = os.environ) -> str:
    """The protocol that the launcher offers to this process: pmi, pmix or none."""
    kind = environ.get("SLURM_MPI_TYPE", "") if launch.launcher == "slurm" else ""
    if kind.startswith("pmix"):
        return "pmix"
    if kind in ("pmi2", "none"):
        return "pmi" if kind == "pmi2" else "none"
    if launch.launcher != "openmpi" and any(name in environ for name in ("PMI_SIZE", "PMI_FD", "PMI_PORT")):
        return "pmi"
    return "pmix" if "PMIX_NAMESPACE" in environ else "none"


def check(launch: Launch, library: Library, environ: Mapping[str, str] = os.environ) -> None:
    """Raise UserError with the cure when `library` certainly does not understand this launcher."""
    offer = offered_protocol(launch, environ)
    if launch.launcher == "torchrun" and launch.size > 1:
        raise UserError(mismatch(launch, library, "has no part in that"))
    if launch.launcher == "none" or launch.size == 1 or not library.understands or offer in library.understands:
        return
    if launch.launcher == "slurm" and offer != "none":
        raise UserError(mismatch(launch, library, f"does not understand --mpi={environ.get('SLURM_MPI_TYPE', SRUN_FLAG[offer])}"))
    raise UserError(mismatch(launch, library, "sees a world of 1"))


def prepare(launch: Launch, library: Library, environ: MutableMapping[str, str] = os.environ) -> None:
    """Choose PMI 1 for MPICH under its own mpiexec: in a Slurm step of type pmix, MPICH finds two protocols and gives up."""
    if library.family == "MPICH" and launch.launcher == "mpich" and "PMIX_NAMESPACE" in environ:
        environ.setdefault("MPIR_CVAR_PMI_VERSION", "1")


def abort_early(launch: Launch, code: int, environ: Mapping[str, str] = os.environ) -> None:
    """End all ranks before MPI is initialised.

    Until then MPICH's mpiexec ignores the end of a rank, and the other ranks wait. The command is that of MPI_Abort in PMI-1.
    """
    if launch.launcher == "mpich" and environ.get("PMI_FD", "").isdigit():
        with suppress(OSError):  # mpiexec has ended the job already
            os.write(int(environ["PMI_FD"]), f"cmd=abort exitcode={code}\n".encode())


def needs_fresh_heap(launch: Launch, library: Library, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether MPI must be initialised in a new thread, whose heap is still all zeros.

        memory that MPICH 5 over UCX sends:   | address | bytes behind the address ................ |   4096 bytes
        the text for PMI:                       runs of zeros are abbreviated, other bytes are written out
        Slurm's plugin for PMI:                 cuts each line at 1024 bytes

    After an import of PyTorch, too few zeros may follow the address. Then the text is cut, and MPI_Init fails or hangs.
    """
    return library.family == "MPICH" and launch.launcher == "slurm" and offered_protocol(launch, environ) == "pmi"


def check_size(launch: Launch, library: Library, size: int) -> None:
    """Raise UserError with the cure when the world of the initialised library has another size than the launcher's."""
    if size != launch.size:
        raise UserError(mismatch(launch, library, f"sees a world of {size}"))


STARTERS = {"slurm": "srun", "torchrun": "torchrun", "openmpi": "Open MPI's mpiexec", "mpich": "MPICH's mpiexec"}


def mismatch(launch: Launch, library: Library, what: str) -> str:
    """One sentence: the launcher and its number of processes, the library's view `what`, and the cure."""
    gloo = "set comm.backend: gloo"
    if launch.launcher == "none":
        return f"one process was started, but {library.name} {what}: start it with mpiexec or srun, or set comm.backend: serial"
    if launch.launcher == "torchrun":
        cure = f"{gloo} (or nccl, with one GPU per rank), or start with mpiexec or srun"
    elif launch.launcher == "slurm":
        flags = f"srun --mpi={SRUN_FLAG[library.usual]}" if library.usual else "the --mpi that your cluster's guide names for it"
        cure = f"use {flags}, or {gloo}, which works with any"
    else:
        cure = f"use {library.family}'s own mpiexec, or {gloo} under torchrun or srun"
    return f"{STARTERS[launch.launcher]} started {launch.size} processes, but {library.name}, which mpi4py loads, {what}: {cure}"
