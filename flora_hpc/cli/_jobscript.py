"""Job scripts for Slurm: converts a Job to text. The scripts in slurm/ are made here, too."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flora_hpc.comm.mpilibrary import SRUN_FLAG, Library
from flora_hpc.errors import UserError

CORES = 4  # of a rank, unless said otherwise
WARNING_SECONDS = 120  # before the time limit, or up to a minute more, Slurm sends its signal
SHORTEST_SECONDS = 300


@dataclass(frozen=True)
class Job:
    """One run on a cluster; with `clients`, one run for each of these numbers of registered clients.

    Counts are at least 1, that of GPUs at least 0. `mpi` is pmix, pmi2 or none.
    """

    config: str
    out: str
    settings: tuple[str, ...]
    nodes: int
    gpus_per_node: int
    ntasks_per_node: int
    cpus_per_task: int
    time: str
    mpi: str
    partition: str | None = None
    account: str | None = None
    clients: tuple[int, ...] = ()
    container: str | None = None
    plugins: tuple[str, ...] = ()  # files of the user's own parts

    @property
    def num_tasks(self) -> int:
        return self.nodes * self.ntasks_per_node


def check(job: Job) -> None:
    """Raise UserError for options that Slurm would refuse, or that a script cannot hold."""
    for option, number, least in (
        ("--nodes", job.nodes, 1),
        ("--gpus-per-node", job.gpus_per_node, 0),
        ("--ntasks-per-node", job.ntasks_per_node, 1),
        ("--cpus-per-task", job.cpus_per_task, 1),
    ):
        if number < least:
            raise UserError(f"{option}: must be at least {least}, not {number}")
    if (limit := seconds(job.time)) < SHORTEST_SECONDS:
        raise UserError(
            f"--time: {job.time} is {limit} seconds to Slurm, whose warning comes up to {WARNING_SECONDS + 60} seconds before the "
            f"end; give at least {SHORTEST_SECONDS // 60} minutes, as hours:minutes:seconds, for example 2:00:00"
        )
    for option, name in (("--partition", job.partition), ("--account", job.account)):
        if name is not None and not re.fullmatch(r"[\w.,@+:-]+", name, re.ASCII):
            raise UserError(f"{option}: {name!r} is no name; give letters, digits and . , @ + : - _ only")
    for option, text in (
        ("CONFIG", job.config),
        ("--out", job.out),
        ("--container", job.container),
        *(("-s", setting) for setting in job.settings),
    ):
        if text is not None and (not text or re.search("[\x00-\x1f\x7f\ud800-\udfff]", text)):
            raise UserError(f"{option}: {text!r} is empty or holds a line break or another control character; write plain text")
    for setting in job.settings:
        if job.clients and re.match(r"\s*partition\.num_clients\s*=", setting):
            raise UserError(f"-s {setting}: --array sets the number of clients; leave one of the two away")


def seconds(time: str) -> int:
    """A time limit as Slurm reads it: 90 and 90:00 are minutes, 2:00:00 hours, 1-12 and 1-12:30:00 days. Raises UserError."""
    days = re.fullmatch(r"(?:(\d{1,4})-)(\d\d?)(?::(\d\d))?(?::(\d\d))?", time, re.ASCII)
    hours = re.fullmatch(r"()(\d{1,4}):(\d\d):(\d\d)", time, re.ASCII)
    minutes = re.fullmatch(r"()()(\d{1,6})(?::(\d\d))?", time, re.ASCII)
    match = days or hours or minutes
    d, h, m, s = (int(text or 0) for text in match.groups()) if match else (0, 0, 0, 0)
    if not match or s > 59 or (m > 59 and not minutes) or (h > 23 and days):
        raise UserError(
            f"--time: {time!r} is no time limit; give hours:minutes:seconds or days-hours:minutes:seconds, such as 2:00:00"
        )
    return ((d * 24 + h) * 60 + m) * 60 + s


def mpi_for(job: Job, backend: str, library: Callable[[], Library | None]) -> str:
    """The value of `srun --mpi`; `job.mpi` may be auto. `library` returns the library that mpi4py loads, None without one.

    Raises UserError where ranks would not find each other.
    """
    if job.num_tasks == 1:
        return "none" if job.mpi == "auto" else job.mpi
    if backend == "serial":
        raise UserError(f"comm.backend: 'serial' is one process, and this job has {job.num_tasks} tasks; set comm.backend: auto")
    if job.mpi == "none" and backend == "mpi":
        raise UserError("--mpi none: comm.backend is 'mpi', whose ranks would not find each other; give --mpi pmix or pmi2")
    if job.mpi != "auto":
        return job.mpi
    if backend in ("gloo", "nccl") or (job.container and backend == "auto"):
        return "none"
    mpi_library = None if job.container else library()
    if mpi_library is None and backend == "auto":
        return "none"
    if mpi_library is not None and mpi_library.usual:
        return SRUN_FLAG[mpi_library.usual]
    problem = f"nobody knows which {mpi_library.name} needs" if mpi_library else "mpi4py is not installed here"
    problem = "the MPI library of the container cannot be seen from here" if job.container else problem
    raise UserError(
        f"--mpi auto: {problem}; give --mpi pmix (Open MPI) or pmi2 (MPICH, Intel MPI), or do without MPI: -s comm.backend=gloo"
    )


def own_backend(job: Job, backend: str) -> str | None:
    """The backend that a script must name: with --mpi=none, `auto` would still take MPI wherever mpi4py is installed."""
    if job.mpi != "none" or backend != "auto" or job.num_tasks == 1:
        return None
    return "nccl" if job.ntasks_per_node <= job.gpus_per_node else "gloo"


def render(job: Job, command: list[str]) -> str:
    """The script. `command` is the flora-hpc command that writes it."""
    lines = [
        "#!/bin/bash",
        *(f"# {line}" for line in describe(job)),
        "#",
        "# Submit it with `sbatch THIS-FILE`, from a shell in which flora-hpc starts; what follows the file's name, such as",
        "# `-s rounds=5`, goes to flora-hpc run. Some two minutes before the time limit, or when it is preempted, the run saves a",
        "# checkpoint and ends with code 75; the last lines then put the job back into the queue, and it goes on from there.",
        "# Written by:",
        f"#   {shlex.join(command)}",
        "",
        *(f"#SBATCH --{name}={value}" if value else f"#SBATCH --{name}" for name, value in directives(job).items()),
        "",
    ]
    if job.clients:
        counts = " ".join(map(str, job.clients))
        lines += [f"counts=({counts})", "clients=${counts[$SLURM_ARRAY_TASK_ID]}", ""]
    if job.container and job.num_tasks > 1 and job.mpi == "none":
        lines += [
            "# Where ranks meet: inside the container there is no scontrol to ask.",
            'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
            "export MASTER_ADDR MASTER_PORT",
            "",
        ]
    # one task of an array has the id of the array: a requeue of that id would requeue all tasks
    job_id = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if job.clients else "$SLURM_JOB_ID"
    lines += [
        "# --mpi: pmix for Open MPI, pmi2 for MPICH and Intel MPI, none for torch's NCCL and gloo (comm.backend)",
        f'srun --kill-on-bad-exit=1 --mpi={job.mpi} --cpus-per-task="$SLURM_CPUS_PER_TASK" \\',
        *program(job),
        "code=$?",
        f'if [ "$code" -eq 75 ]; then scontrol requeue "{job_id}"; fi',
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def describe(job: Job) -> list[str]:
    """Describe the job in a sentence or more."""
    where = "one node" if job.nodes == 1 else f"{job.nodes} nodes"
    gpus = f"{job.gpus_per_node} GPU{'s' * (job.gpus_per_node > 1)}"
    each = " each" * (job.nodes > 1)
    where += f" with {gpus}{each}" if job.gpus_per_node else ", without GPUs"
    ranks = f"{job.num_tasks} rank{'s' * (job.num_tasks > 1)}"
    share = ", one for each GPU" if job.ntasks_per_node == job.gpus_per_node else ""
    cores = f"{job.cpus_per_task} core{'s' * (job.cpus_per_task > 1)}"
    lines = [f"A run on {where}: {ranks}{share}, {cores} for each rank."]
    if job.clients:
        lines.append(
            f"A job array: one such run for each of {len(job.clients)} numbers of clients, as many at a time as there is room for."
        )
    if job.container:
        lines.append(
            "The program runs in a container, with Apptainer" + (", which --nv lets see the GPUs." if job.gpus_per_node else ".")
        )
    return lines


def directives(job: Job) -> dict[str, str]:
    """The options of sbatch; an empty value is a flag."""
    options = {
        "job-name": re.sub(r"[^\w.-]+", "-", Path(job.config).stem, flags=re.ASCII),
        "partition": job.partition,
        "account": job.account,
        "nodes": str(job.nodes),
        "ntasks-per-node": str(job.ntasks_per_node),
        "cpus-per-task": str(job.cpus_per_task),
        "gpus-per-node": str(job.gpus_per_node) if job.gpus_per_node else None,
        "time": job.time,
        "array": f"0-{len(job.clients) - 1}" if job.clients else None,
        "signal": f"USR1@{WARNING_SECONDS}",
        "requeue": "",
        "open-mode": "append",
        "output": "%x-%A_%a.log" if job.clients else "%x-%j.log",
    }
    return {name: value for name, value in options.items() if value is not None}


def program(job: Job) -> list[str]:
    """The lines of the command of every task, each part quoted for the shell."""
    nv = "--nv " if job.gpus_per_node else ""
    lines = [f"apptainer exec {nv}{shlex.quote(job.container)} \\"] if job.container else []
    suffix, clients = ('-"$clients"', ['-s partition.num_clients="$clients"']) if job.clients else ("", [])
    lines.append(f"flora-hpc run {shlex.quote(job.config)} --out {shlex.quote(job.out)}{suffix} --resume \\")
    rest = [f"--plugin {shlex.quote(file)}" for file in job.plugins]
    rest += [*(f"-s {shlex.quote(setting)}" for setting in job.settings), *clients, '"$@"']
    lines.append(" ".join(rest))
    return [f"    {line}" for line in lines]
