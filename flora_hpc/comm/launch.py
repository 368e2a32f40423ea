"""Find this process's rank: a table has the variables of each launcher, and the first launcher present counts."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from flora_hpc.errors import UserError


@dataclass(frozen=True)
class Variables:
    """The environment variables of one launcher. Only this launcher sets `marker`."""

    launcher: str
    marker: str
    rank: str
    size: str
    local_rank: str
    local_size: str


# Slurm comes last: under mpirun or torchrun inside a Slurm job, processes inherit SLURM_* from their parent.
# Slurm's marker is SLURM_STEP_ID: a batch shell has SLURM_PROCID=0, but is no step.
TABLE = (
    Variables("torchrun", "TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    Variables(
        "openmpi",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    Variables("mpich", "MPI_LOCALRANKID", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    Variables("slurm", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)


@dataclass(frozen=True)
class Launch:
    """This process according to the launcher: `rank` of `size` processes, `local_rank` of `local_size` on this node."""

    launcher: str = "none"
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def detect(environ: Mapping[str, str] = os.environ) -> Launch:
    """Read the launcher's variables. Raises UserError when they are incomplete or contradict each other."""
    row = _row(environ)
    if row is None:
        return Launch()
    values = []
    for name in (row.rank, row.size, row.local_rank, row.local_size):
        text = environ.get(name, "")
        if name == "SLURM_STEP_TASKS_PER_NODE":
            text = _tasks_on_this_node(text, environ.get("SLURM_NODEID", "0"))
        if not text.isdigit():
            raise UserError(
                f"{row.launcher} started this process ({row.marker} is set), but {name} is {text or 'missing'!r}; "
                f"start through {row.launcher} itself, or unset {row.marker}"
            )
        values.append(int(text))
    rank, size, local_rank, local_size = values
    if not (rank < size and local_rank < local_size):
        raise UserError(f"{row.launcher} says rank {rank} of {size}, local rank {local_rank} of {local_size}: impossible")
    return Launch(row.launcher, rank, size, local_rank, local_size)


def origin(environ: Mapping[str, str] = os.environ) -> str:
    """The variables that give this process's rank, with their values."""
    row = _row(environ)
    if row is None:
        return "no launcher's variables"
    names = dict.fromkeys((row.rank, row.size, row.local_rank, row.local_size))
    return ", ".join(f"{name}={environ.get(name, '')}" for name in names)


def _row(environ: Mapping[str, str]) -> Variables | None:
    """The first launcher of the table that is present."""
    return next((row for row in TABLE if row.marker in environ), None)


def _tasks_on_this_node(text: str, node: str) -> str:
    """The entry of node number `node` in Slurm's list of tasks: '2,1(x3)' means 2, 1, 1, 1 tasks."""
    counts: list[str] = []
    for count, repeat in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [count] * int(repeat or 1)
    return counts[int(node)] if node.isdigit() and int(node) < len(counts) else ""


def started(launcher: str) -> str:
    """How processes were started, for people."""
    return "started alone" if launcher == "none" else f"started by {launcher}"


ADVICE = {
    "none": "start it with mpiexec, torchrun or srun, or set comm.backend: serial",
    "torchrun": "set comm.backend: gloo (or nccl, with one GPU per rank)",
    "openmpi": "use the mpirun of the MPI library that mpi4py loads (flora-hpc doctor names it)",
    "mpich": "use the mpiexec of the MPI library that mpi4py loads (flora-hpc doctor names it)",
    "slurm": "use srun --mpi=pmix for Open MPI, --mpi=pmi2 for MPICH or Intel MPI, --mpi=none with comm.backend: gloo or nccl",
}


def check_world(launch: Launch, backend: str, size: int) -> None:
    """Raise UserError unless the communicator has the launcher's size; otherwise every process might be a rank 0."""
    if size != launch.size:
        started = f"{launch.launcher} started {launch.size} processes" if launch.launcher != "none" else "one process was started"
        advice = "set comm.backend: auto" if backend == "serial" else ADVICE[launch.launcher]
        raise UserError(f"{started}, but backend '{backend}' sees a world of {size}: {advice}")
