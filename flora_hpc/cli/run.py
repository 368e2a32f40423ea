"""`flora-hpc run`: the main job, under any launcher."""

import json
import os
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from flora_hpc import configfile, screen
from flora_hpc.cli._args import ConfigFile, Overrides, View, has_terminal
from flora_hpc.cli._job import ends, job_with_config
from flora_hpc.cli._progress import Bar
from flora_hpc.comm import launch, stop
from flora_hpc.comm.communicator import AgreedError, together
from flora_hpc.config import Config
from flora_hpc.errors import StoppedError, UserError
from flora_hpc.owner import living
from flora_hpc.owner.claim import Claim

STARTED = time.perf_counter()
LOADING = "loading PyTorch, the model and the data ..."  # said before that begins, for it takes seconds


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="run directory; by default runs/<config name>-<time>", show_default=False)
    ] = None,
    view: Annotated[
        View, typer.Option(help="live view or one plain line a round; auto asks whether this is a terminal")
    ] = View.auto,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            envvar="FLORA_HPC_TRACK",
            show_default=False,
            help="also keep every round's numbers in csv, tensorboard, mlflow or wandb; may be repeated",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="say only what is wrong, and one line at the end")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the unfinished run in --out; start anew where there is none")
    ] = False,
) -> None:
    """Run an experiment. Start it with srun, mpiexec or torchrun, or alone.

    SIGUSR1 and SIGTERM save the run and end it with exit code 75; --resume goes on with it, on any number of ranks.
    """
    stop.expect()
    screen.beside_work()
    me = launch.detect()
    job = f"-{os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""  # tasks of an array may start together
    if resume and out is None:
        raise UserError("--resume: which run? name its directory with --out")
    out = out or Path("runs") / f"{config.stem}-{time.strftime('%Y%m%d-%H%M%S')}{job}"

    if me.rank == 0 and not quiet:
        print(LOADING, flush=True)  # the configuration itself, with its methods, imports PyTorch

    def note(sentence: str) -> None:
        if not quiet:
            print(f"note: {sentence}", flush=True)

    claim = Claim(out, lambda sentence: print(f"note: {sentence}", flush=True))  # also with --quiet: a run has died

    def load() -> Config:
        resolved, notes = configfile.load(config, overrides)
        for sentence in notes:
            note(sentence)
        is_there = os.path.isdir(out)  # noqa: PTH112 -- pathlib raises for names that are too long
        if me.rank == 0 and (is_there or living.restarts()):  # a start that is killed while ranks connect leaves no new folder
            claim.take(lambda: newest_saved(out))
        return resolved

    with claim, job_with_config(me, load, lambda: configfile.load_comm(config, overrides)) as (comm, resolved):

        def look() -> Found:
            if comm.rank == 0 and track:
                from flora_hpc.observers import _tracker

                _tracker.check(track)
            if me.rank == 0:
                claim.take(lambda: newest_saved(out))
            if comm.rank != 0:
                return Found()
            if not resume:
                refuse_used(out)
            found = unfinished(out, resolved) if resume else Found()
            if not found.finished:
                claim.require()
                end_of_chain(claim.owner.idle, 2)
            return replace(found, idle=claim.owner.idle)

        found = Found(**json.loads(comm.allgather(json.dumps(asdict(together(comm, look))).encode())[0]))  # rank 0's
        if found.finished:
            print(f"the run in {out} has finished already")
            return

        from flora_hpc import simulation  # torch and open_clip take seconds to import
        from flora_hpc.observers import _aside, hdf5, plain, terminal
        from flora_hpc.observers import quiet as one_line

        seen = has_terminal() and me.launcher != "openmpi"  # its ranks always have a terminal, even when a log file is read
        live = not quiet and (view == View.live or (view == View.auto and seen))
        observers = (hdf5, one_line if quiet else terminal if live else plain)
        try:
            simulation.run(
                resolved,
                comm,
                me,
                out,
                lambda: [claim, *(each.build(out) for each in observers), _aside.build(track or (), out)],
                STARTED,
                Bar("features", live=live) if not quiet else lambda done, total: None,
                found.unfinished,
                ends(comm),
                claim.check,
            )
        except StoppedError as error:
            if error.num_rounds == 0:
                end_of_chain(found.idle, 1)
            raise
        stop.ignore()


@dataclass(frozen=True)
class Found:
    """What a run directory holds."""

    unfinished: bool = False
    finished: bool = False
    idle: int = 0  # earlier starts of this job, in a row, that saved no new round


def refuse_used(out: Path) -> None:
    """Raise UserError when `out` cannot become a new run directory."""
    if any((out / name).exists() for name in ("run.h5", "config.yaml", "adapter", "checkpoint")):
        raise UserError(f"--out {out}: already holds a run; choose another directory, remove this one, or go on with --resume")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; choose a directory")


def unfinished(out: Path, config: Config) -> Found:
    """What `out` holds of a run of `config`. Raises UserError when it holds another one, or none that can be read."""
    if not (out / "run.h5").exists():
        if (out / "adapter").exists() or not (out.is_dir() or not out.exists()):
            raise UserError(f"--resume: {out} holds no run.h5 to go on with; choose another directory")
        return Found()
    from flora_hpc.records import hdf5file

    attributes, tables = hdf5file.read(out, ())
    stored, _ = configfile.load(out / "config.yaml")
    if differing := configfile.differences(stored.essence(), config.essence()):
        told = "; ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in differing.items())
        raise UserError(f"--resume: the run in {out} is another one: {told}; give it its own configuration, or another --out")
    played = max(int(tables["rounds"]["round"].max(initial=-1)), newest_saved(out))
    finished = attributes["status"] == "finished" and config.rounds == played
    if not finished and config.rounds <= played and config.rounds != stored.rounds:
        raise UserError(
            f"--resume: rounds: {config.rounds}, but the run in {out} has played {played}; "
            f"give more rounds, or {stored.rounds} as before"
        )
    return Found(not finished, finished)


def newest_saved(out: Path) -> int:
    """The newest round of a run directory that has a checkpoint, -1 for none."""
    names = (re.fullmatch(r"round-(\d+)\.safetensors", file.name) for file in (out / "checkpoint").glob("round-*"))
    return max((int(name[1]) for name in names if name), default=-1)


def end_of_chain(idle: int, most: int) -> None:
    """Raise UserError, for code 2 is not queued again, when `idle` starts of a job that saved no new round are `most` or more."""
    if living.restarts() and idle >= most:
        raise AgreedError(
            "two starts of this Slurm job in a row saved no new round, so it is not queued again; give it a longer time limit "
            "(sbatch --time), or shorter rounds, and submit it anew"
        )
