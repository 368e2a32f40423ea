"""`flora-hpc slurm`: a job script for a run, to read, keep or submit."""

import subprocess
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flora_hpc import configfile, plugins, screen
from flora_hpc.cli import _idle, _jobscript
from flora_hpc.cli._args import ConfigFile, Overrides, Plugins, use_plugins, whole_numbers
from flora_hpc.comm import mpilibrary
from flora_hpc.config import Config
from flora_hpc.errors import UserError, reason


class Mpi(StrEnum):
    """How srun's tasks connect to each other."""

    auto = "auto"
    pmix = "pmix"
    pmi2 = "pmi2"
    none = "none"


def slurm(
    config: ConfigFile,
    overrides: Overrides = None,
    plugin: Plugins = None,
    nodes: Annotated[int, typer.Option(help="number of nodes")] = 1,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of each node")] = 0,
    time: Annotated[str, typer.Option(metavar="H:MM:SS", help="time limit, as for sbatch")] = "1:00:00",
    ntasks_per_node: Annotated[
        int | None, typer.Option(metavar="N", help="ranks on each node; by default one for each GPU, or one", show_default=False)
    ] = None,
    cpus_per_task: Annotated[int, typer.Option(metavar="N", help="cores of each rank")] = _jobscript.CORES,
    partition: Annotated[str | None, typer.Option(metavar="P", help="partition of the cluster", show_default=False)] = None,
    account: Annotated[str | None, typer.Option(metavar="A", help="account to charge", show_default=False)] = None,
    array: Annotated[
        str | None,
        typer.Option(metavar="COUNTS", help="a job array over numbers of clients, such as 10,100,1000", show_default=False),
    ] = None,
    container: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="run inside this image, with Apptainer", show_default=False)
    ] = None,
    mpi: Annotated[Mpi, typer.Option(help="auto looks at the MPI library here and at comm.backend")] = Mpi.auto,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="run directory; by default runs/<config name>", show_default=False)
    ] = None,
    submit: Annotated[bool, typer.Option("--submit", help="hand the script to sbatch instead of printing it")] = False,
) -> None:
    """Print a Slurm job script for a run, or submit it."""
    use_plugins(plugin)
    settings = tuple(overrides or ())
    path = f"{'./' * str(config).startswith('-')}{config}"  # a path that starts with - is no option
    job = _jobscript.Job(
        config=path,
        out=str(out or Path("runs") / config.stem),
        settings=settings,
        plugins=tuple(str(file) for file in plugin or ()),
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        ntasks_per_node=ntasks_per_node if ntasks_per_node is not None else max(1, gpus_per_node),
        cpus_per_task=cpus_per_task,
        time=time,
        mpi=mpi,
        partition=partition,
        account=account,
        clients=tuple(whole_numbers("--array", array, "10,100,1000")) if array is not None else (),
        container=container,
    )
    _jobscript.check(job)
    configs = check_config(config, job)
    backend = configs[0].comm.backend
    job = replace(job, mpi=_jobscript.mpi_for(job, backend, library))
    if own_backend := _jobscript.own_backend(job, backend):
        job = replace(job, settings=(*settings, f"comm.backend={own_backend}"))
    options = {
        "--nodes": nodes,
        "--gpus-per-node": gpus_per_node or None,
        "--ntasks-per-node": ntasks_per_node,
        "--cpus-per-task": cpus_per_task if cpus_per_task != _jobscript.CORES else None,
        "--time": time,
        "--partition": partition,
        "--account": account,
        "--array": ",".join(map(str, job.clients)) or None,
        "--container": container,
        "--mpi": job.mpi,
        "--out": out,
    }
    arguments = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    command = ["flora-hpc", "slurm", path, *arguments, *(word for setting in settings for word in ("-s", setting))]
    command += [word for file in job.plugins for word in ("--plugin", file)]
    for warning in _idle.warnings(configs, job.num_tasks, job.gpus_per_node, job.ntasks_per_node):
        print(f"warning: {warning}", file=sys.stderr)
    script = _jobscript.render(job, command)
    if submit:
        print(submit_script(script), end="")
    else:
        screen.for_programs()
        print(script, end="")


def check_config(config: Path, job: _jobscript.Job) -> list[Config]:
    """Load the configuration for each number of clients. Raises UserError unless all of them are valid."""
    counts = [[f"partition.num_clients={count}"] for count in job.clients]
    configs = [configfile.load(config, [*job.settings, *count]) for count in counts or [[]]]
    for note in configs[0][1]:
        print(f"note: {note}", file=sys.stderr)  # the script alone is on standard output
    return [resolved for resolved, _ in configs]


def library() -> mpilibrary.Library | None:
    """The MPI library that mpi4py loads here, None without mpi4py. Raises UserError when mpi4py finds none."""
    return mpilibrary.loaded() if plugins.member("backends", "mpi").available() else None


def submit_script(script: str) -> str:
    """Submit a script; returns the output of sbatch. Raises UserError when sbatch is missing or refuses."""
    try:
        result = subprocess.run(["sbatch"], input=script, capture_output=True, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UserError(
            f"--submit: sbatch cannot be started here ({reason(error)}); do this on a login node of the cluster, "
            "or leave --submit away and keep the script"
        ) from None
    if result.returncode:
        why = " ".join(result.stderr.replace("sbatch: ", "").replace("error: ", "").split())
        raise UserError(
            f"--submit: sbatch refused the job: {why}; sinfo shows what this cluster has, change the options accordingly"
        )
    return result.stdout
