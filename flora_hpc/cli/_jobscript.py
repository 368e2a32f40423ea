"""Job scripts for Slurm: converts a Job to text. The scripts in slurm/ are made here, too."""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from flora_hpc.cli import _jobchecks
from flora_hpc.comm.mpilibrary import SRUN_FLAG, Library
from flora_hpc.errors import UserError
from flora_hpc.records.views import count

CORES = 4  # of a rank, unless said otherwise
MEETING = """\
# Where ranks meet: inside the container there is no scontrol to ask.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
"""


@dataclass(frozen=True)
class Array:
    """A job array of runs: each task sets `key` to another value, as `-s` takes it."""

    key: str
    values: tuple[str, ...]
    names: tuple[str, ...] = ()  # what the directory of each run ends with; by default the value


@dataclass(frozen=True)
class Job:
    """One run on a cluster, an array of runs, or a study, of which each of `shards` allocations plays a share.

    Counts are at least 1, that of GPUs at least 0. `mpi` is pmix, pmi2 or none.
    """

    config: str  # empty for a study
    out: str  # directory of the run, or of the study
    settings: tuple[str, ...]
    nodes: int
    gpus_per_node: int
    ntasks_per_node: int
    cpus_per_task: int
    time: str
    mpi: str
    partition: str | None = None
    account: str | None = None
    array: Array | None = None
    container: str | None = None
    plugins: tuple[str, ...] = ()  # files of the user's own parts
    setup: str = ""  # lines of bash before srun
    sbatch: Mapping[str, str] = field(default_factory=dict)  # further options of sbatch; an empty value is a flag
    cpu_bind: str | None = None
    shards: int = 1
    ranks_per_run: int | None = None  # of a study; None leaves it to the study

    @property
    def is_study(self) -> bool:
        return not self.config

    @property
    def num_tasks(self) -> int:
        return self.nodes * self.ntasks_per_node

    @cached_property
    def gpus_on_node(self) -> int:
        """GPUs of each node, by --gpus-per-node or by sbatch's gpus-per-task."""
        per_task = self.sbatch.get("gpus-per-task", "").rpartition(":")[2]
        return self.gpus_per_node or (int(per_task) * self.ntasks_per_node if per_task.isdecimal() else 0)

    @property
    def num_array_tasks(self) -> int:
        """Tasks of the job array; 0 for a job without one."""
        return len(self.array.values) if self.array else self.shards if self.shards > 1 else 0


def check(job: Job) -> None:
    """Raise UserError for options that Slurm would refuse, or that a script cannot hold."""
    for option, number, least in (
        ("--nodes", job.nodes, 1),
        ("--gpus-per-node", job.gpus_per_node, 0),
        ("--ntasks-per-node", job.ntasks_per_node, 1),
        ("--cpus-per-task", job.cpus_per_task, 1),
        ("--shards", job.shards, 1),
        ("--ranks-per-run", 1 if job.ranks_per_run is None else job.ranks_per_run, 1),
    ):
        _jobchecks.at_least(option, number, least)
    _jobchecks.time_limit(job.time)
    for option, name in (("--partition", job.partition), ("--account", job.account), ("--cpu-bind", job.cpu_bind)):
        _jobchecks.plain_name(option, name)
    for option, text in (
        ("CONFIG", job.config or None),
        ("--study" if job.is_study else "--out", job.out),
        ("--container", job.container),
        *(("-s", setting) for setting in job.settings),
        *(("--array", value) for value in (job.array.values if job.array else ())),
    ):
        _jobchecks.plain_text(option, text)
    for setting in job.settings:
        if job.array and setting.partition("=")[0].strip() == job.array.key:
            raise UserError(f"-s {setting}: --array sets {job.array.key}, too; leave one of the two out")


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
    return "nccl" if job.ntasks_per_node <= job.gpus_on_node else "gloo"


def render(job: Job, command: list[str]) -> str:
    """The script. `command` is the flora-hpc command that writes it."""
    lines = [
        "#!/bin/bash",
        *(f"# {line}" for line in describe(job)),
        "#",
        *(f"# {line}" for line in usage(job)),
        "# Written by:",
        f"#   {shlex.join(command)}",
        "",
        *(f"#SBATCH --{name}={quoted(value)}" if value else f"#SBATCH --{name}" for name, value in directives(job).items()),
        "",
    ]
    if job.setup:
        lines += ["# --setup:", *job.setup.rstrip("\n").split("\n"), ""]
    if job.array:
        lines += [f"values=({shlex.join(job.array.values)})", "value=${values[$SLURM_ARRAY_TASK_ID]}"]
        lines += [f"names=({shlex.join(job.array.names)})", "name=${names[$SLURM_ARRAY_TASK_ID]}"] if job.array.names else []
        lines.append("")
    if job.container and job.num_tasks > 1 and job.mpi == "none":
        lines += MEETING.split("\n")
    # one task of an array has the id of the array: a requeue of that id would requeue all tasks
    job_id = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if job.num_array_tasks else "$SLURM_JOB_ID"
    bind = f"--cpu-bind={job.cpu_bind} " if job.cpu_bind else ""
    lines += [
        "# --mpi: pmix for Open MPI, pmi2 for MPICH and Intel MPI, none for torch's NCCL and gloo (comm.backend)",
        "code=0",
        f'srun --kill-on-bad-exit=1 --mpi={job.mpi} {bind}--cpus-per-task="$SLURM_CPUS_PER_TASK" \\',
        *program(job),
        f'if [ "$code" -eq 75 ]; then scontrol requeue "{job_id}"; fi',
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def describe(job: Job) -> list[str]:
    """Describe the job in a sentence or more."""
    where = "one node" if job.nodes == 1 else f"{job.nodes} nodes"
    gpus = f"{count(job.gpus_on_node, 'GPU')}{' each' * (job.nodes > 1)}"
    where += f" with {gpus}" if job.gpus_on_node else ", without GPUs"
    share = ", one for each GPU" if job.ntasks_per_node == job.gpus_on_node else ""
    kind = "A study" if job.is_study else "A run"
    lines = [f"{kind} on {where}: {count(job.num_tasks, 'rank')}{share}, {count(job.cpus_per_task, 'core')} for each rank."]
    if job.array:
        values = "numbers of clients" if job.array.key == "partition.num_clients" else f"values of {job.array.key}"
        lines.append(
            f"A job array: one such run for each of {len(job.array.values)} {values}, as many at a time as there is room for."
        )
    if job.shards > 1:
        lines.append(f"A job array: {job.shards} such jobs, each of which plays every {nth(job.shards)} point of the study.")
    if job.container:
        lines.append(
            "The program runs in a container, with Apptainer" + (", which --nv lets see the GPUs." if job.gpus_on_node else ".")
        )
    return lines


def nth(number: int) -> str:
    """2 -> '2nd'."""
    endings = {1: "st", 2: "nd", 3: "rd"} if number % 100 not in (11, 12, 13) else {}
    return f"{number}{endings.get(number % 10, 'th')}"


def usage(job: Job) -> list[str]:
    """How to submit the script, and what it does at the time limit."""
    submit = "Submit it with `sbatch THIS-FILE`, from a shell in which flora-hpc starts; what follows the file's name, such as"
    if job.is_study:
        return [
            submit,
            "`--ranks-per-run 2`, goes to flora-hpc study. Some two minutes before the time limit, or when it is preempted, every",
            "run saves a checkpoint and the study ends with code 75; the last lines then put the job back into the queue, and it",
            f"goes on from there. `flora-hpc study watch {shlex.quote(job.out)}` shows how far it is.",
        ]
    return [
        submit,
        "`-s rounds=5`, goes to flora-hpc run. Some two minutes before the time limit, or when it is preempted, the run saves a",
        "checkpoint and ends with code 75; the last lines then put the job back into the queue, and it goes on from there.",
    ]


def directives(job: Job) -> dict[str, str]:
    """The options of sbatch; an empty value is a flag."""
    options = {
        "job-name": re.sub(r"[^\w.-]+", "-", Path(job.out).name if job.is_study else Path(job.config).stem, flags=re.ASCII),
        "partition": job.partition,
        "account": job.account,
        "nodes": str(job.nodes),
        "ntasks-per-node": str(job.ntasks_per_node),
        "cpus-per-task": str(job.cpus_per_task),
        "gpus-per-node": str(job.gpus_per_node) if job.gpus_per_node else None,
        "time": job.time,
        "array": f"0-{job.num_array_tasks - 1}" if job.num_array_tasks else None,
        **job.sbatch,
        "signal": f"USR1@{_jobchecks.WARNING_SECONDS}",
        "requeue": "",
        "open-mode": "append",
        "output": "%x-%A_%a.log" if job.num_array_tasks else "%x-%j.log",
    }
    return {name: value for name, value in options.items() if value is not None}


def quoted(value: str) -> str:
    """A value as sbatch reads it in a script: it has quotes and backslashes of its own, and # begins a comment."""
    if not re.search(r"""[\s"'\\#]""", value):
        return value
    escaped = re.sub(r'(["\\])', r"\\\1", value)
    return f'"{escaped}"'


def program(job: Job) -> list[str]:
    """The lines of the command of every task, each part quoted for the shell."""
    nv = "--nv " if job.gpus_on_node else ""
    lines = [f"apptainer exec {nv}{shlex.quote(job.container)} \\"] if job.container else []
    rest = [f"--plugin {shlex.quote(file)}" for file in job.plugins]
    if job.is_study:
        lines.append(f"flora-hpc study --out {shlex.quote(job.out)} --resume \\")
        rest += [f"--ranks-per-run {job.ranks_per_run}"] if job.ranks_per_run else []
        rest += [f'--shard "$SLURM_ARRAY_TASK_ID/{job.shards}"'] if job.shards > 1 else []
    else:
        suffix = ('-"$name"' if job.array.names else '-"$value"') if job.array else ""
        lines.append(f"flora-hpc run {shlex.quote(job.config)} --out {shlex.quote(job.out)}{suffix} --resume \\")
    rest += [f"-s {shlex.quote(setting)}" for setting in job.settings]
    rest += [f'-s {shlex.quote(job.array.key)}="$value"'] if job.array else []
    lines.append(" ".join([*rest, '"$@" || code=$?']))
    return [f"    {line}" for line in lines]
