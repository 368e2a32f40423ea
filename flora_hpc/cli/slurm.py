"""`flora-hpc slurm`: a job script for a run or a study, to read, keep or submit."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from flora_hpc import plugins, screen
from flora_hpc.cli import _jobchecks, _jobscript, _jobtime, _jobwork
from flora_hpc.cli import _slurm_options as options
from flora_hpc.cli._args import Overrides, Plugins, use_plugins
from flora_hpc.comm import mpilibrary
from flora_hpc.errors import UserError, reason

ALWAYS = ("nodes", "time", "mpi")  # options that the command in a script names even where they have their defaults
APART = ("config", "overrides", "plugin", "submit", "runs")  # arguments that it names in another way, or not at all


def slurm(
    ctx: typer.Context,
    config: options.Config = None,
    overrides: Overrides = None,
    plugin: Plugins = None,
    study: options.Study = None,
    shards: options.Shards = 1,
    ranks_per_run: options.RanksPerRun = None,
    nodes: options.Nodes = 1,
    gpus_per_node: options.GpusPerNode = 0,
    ntasks_per_node: options.NtasksPerNode = None,
    cpus_per_task: options.CpusPerTask = _jobscript.CORES,
    time: options.Time = "1:00:00",
    runs: options.From = None,
    partition: options.Partition = None,
    account: options.Account = None,
    array: options.Array = None,
    container: options.Container = None,
    mpi: options.MpiOption = options.Mpi.auto,
    cpu_bind: options.CpuBind = None,
    setup: options.Setup = None,
    sbatch: options.Sbatch = None,
    out: options.Out = None,
    submit: options.Submit = False,
) -> None:
    """Print a Slurm job script for a run or a study, or submit it."""
    use_plugins(plugin)
    job = job_of(ctx.params)
    _jobscript.check(_jobtime.with_any_time(job))
    job = _jobtime.with_time(job, runs)
    work = _jobwork.of_study(job) if job.is_study else _jobwork.of_runs(job)
    for note in work.notes:
        print(f"note: {note}", file=sys.stderr)  # the script alone is on standard output
    job = replace(job, mpi=_jobscript.mpi_for(job, work.backend, library))
    command = written_by(ctx, job)
    if own_backend := _jobscript.own_backend(job, work.backend):
        job = replace(job, settings=(*job.settings, f"comm.backend={own_backend}"))
    for warning in work.warnings(job):
        print(f"warning: {warning}", file=sys.stderr)
    script = _jobscript.render(job, command)
    if submit:
        print(submit_script(script), end="")
    else:
        screen.for_programs()
        print(script, end="")


def job_of(values: Mapping[str, Any]) -> _jobscript.Job:
    """The job of these options. Raises UserError for options that exclude each other, and for texts that mean nothing."""
    config, study, gpus = values["config"], values["study"], values["gpus_per_node"]
    refuse_mixed(values)
    array = values["array"]
    sbatch = _jobchecks.sbatch_options(values["sbatch"] or ())
    return _jobscript.Job(
        config="" if study else path_text(config),
        out=path_text(study or values["out"] or Path("runs") / config.stem),
        settings=tuple(values["overrides"] or ()),
        nodes=values["nodes"],
        gpus_per_node=gpus,
        ntasks_per_node=values["ntasks_per_node"] if values["ntasks_per_node"] is not None else max(1, gpus),
        cpus_per_task=values["cpus_per_task"],
        time=values["time"],
        mpi=str(values["mpi"]),
        partition=values["partition"],
        account=values["account"],
        array=_jobwork.array(array) if array is not None else None,
        container=values["container"],
        plugins=tuple(str(file) for file in values["plugin"] or ()),
        setup=_jobchecks.setup_lines(values["setup"]) if values["setup"] else "",
        sbatch=sbatch,
        cpu_bind=values["cpu_bind"],
        shards=values["shards"],
        ranks_per_run=values["ranks_per_run"],
    )


def refuse_mixed(values: Mapping[str, Any]) -> None:
    """Raise UserError unless the options belong to a run, or to a study."""
    config, study = values["config"], values["study"]
    if study is None and config is None:
        raise UserError(
            "slurm: needs the CONFIG of a run, or the directory of a study, which `flora-hpc study CONFIG ... --out DIR --prepare` "
            "writes, as --study DIR"
        )
    if study is None:
        for name in ("shards", "ranks_per_run"):
            if values[name] not in (None, 1):
                raise UserError(f"--{name.replace('_', '-')}: is for a study; give --study DIR in place of CONFIG, or leave it out")
        return
    if config is not None:
        raise UserError(f"--study {study}: has a configuration already; leave {config} out")
    for name in ("array", "out"):
        if values[name] is not None:
            instead = "--shards N makes an array of a study" if name == "array" else "a study is played in its own directory"
            raise UserError(f"--{name}: does not go with --study; {instead}")
    for setting in values["overrides"] or ():
        if not setting.strip().startswith("comm."):
            raise UserError(f"-s {setting}: the points of a study have their configuration already; only keys of comm can be set")


def path_text(path: Path) -> str:
    """A path as an argument of a command: one that begins with - is no option."""
    return f"{'./' * str(path).startswith('-')}{path}"


def written_by(ctx: typer.Context, job: _jobscript.Job) -> list[str]:
    """The command that writes the script of this job."""
    defaults = {option.name: option.default for option in ctx.command.params}
    words = ["flora-hpc", "slurm", *([job.config] if job.config else [])]
    for name in (name for name in defaults if name not in APART):
        value = {"mpi": job.mpi, "time": job.time}.get(str(name), ctx.params.get(str(name)))
        if name in ALWAYS or value not in (None, defaults[name]):
            for each in value if isinstance(value, list | tuple) else [value]:
                words += [f"--{str(name).replace('_', '-')}", str(each)]
    words += [word for setting in job.settings for word in ("-s", setting)]
    return [*words, *(word for file in job.plugins for word in ("--plugin", file))]


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
            "or leave --submit out and keep the script"
        ) from None
    if result.returncode:
        why = " ".join(result.stderr.replace("sbatch: ", "").replace("error: ", "").split())
        raise UserError(
            f"--submit: sbatch refused the job: {why}; sinfo shows what this cluster has, change the options accordingly"
        )
    return result.stdout
