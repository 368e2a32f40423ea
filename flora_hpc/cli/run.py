"""`flora-hpc run`: the main job, under any launcher."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from flora_hpc import configfile, rundir, screen
from flora_hpc.cli._args import ConfigFile, Overrides, Plugins, View, has_terminal, use_plugins
from flora_hpc.cli._job import job_with_config
from flora_hpc.cli._progress import Bar
from flora_hpc.comm import launch, stop
from flora_hpc.comm.communicator import AgreedError, together
from flora_hpc.config import Config
from flora_hpc.errors import StoppedError, UserError
from flora_hpc.job import ends
from flora_hpc.owner import living
from flora_hpc.owner.claim import Claim

STARTED = time.perf_counter()
LOADING = "loading PyTorch, the model and the data ..."  # said before that begins, for it takes seconds


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    plugin: Plugins = None,
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
    if resume and out is None:
        raise UserError("--resume: which run? name its directory with --out")
    out = out or rundir.new(config.stem)

    if me.rank == 0 and not quiet:
        print(LOADING, flush=True)  # the configuration itself, with its methods, imports PyTorch

    def note(sentence: str) -> None:
        if not quiet:
            print(f"note: {sentence}", flush=True)

    claim = Claim(out, lambda sentence: print(f"note: {sentence}", flush=True))  # also with --quiet: a run has died

    def load() -> Config:
        use_plugins(plugin)
        if resume and me.rank == 0:
            rundir.check_plugins(out)
        resolved, notes = configfile.load(config, overrides)
        for sentence in notes:
            note(sentence)
        is_there = os.path.isdir(out)  # noqa: PTH112 -- pathlib raises for names that are too long
        if me.rank == 0 and (is_there or living.restarts()):  # a start that is killed while ranks connect leaves no new folder
            claim.take(lambda: rundir.newest_saved(out))
        return resolved

    with claim, job_with_config(me, load, lambda: configfile.load_comm(config, overrides)) as (comm, resolved):

        def look() -> rundir.Found:
            if comm.rank == 0 and track:
                from flora_hpc.observers import _tracker

                _tracker.check(track)
            if comm.rank != 0:
                return rundir.Found()
            found = rundir.enter(out, resolved, claim, resume)
            if not found.finished:
                end_of_chain(found.idle, 2)
            return found

        found, of_rank_0 = rundir.agree(comm, together(comm, look), out)
        if found.finished:
            print(f"the run in {out} has finished already")
            return

        from flora_hpc import loop  # torch and open_clip take seconds to import
        from flora_hpc.observers import _trackerthread, hdf5, plain, terminal
        from flora_hpc.observers import quiet as one_line

        seen = has_terminal() and me.launcher != "openmpi"  # its ranks always have a terminal, even when a log file is read
        live = not quiet and (view == View.live or (view == View.auto and seen))
        observers = (hdf5, one_line if quiet else terminal if live else plain)
        try:
            options = loop.RunOptions(
                of_rank_0,
                lambda: [claim, *(each.build(out) for each in observers), _trackerthread.build(track or (), out)],
                Bar("features", live=live) if not quiet else lambda done, total: None,
                STARTED,
                found.unfinished,
                ends(comm),
                claim.check,
            )
            loop.run(resolved, comm, me, options)
        except StoppedError as error:
            if error.num_rounds == 0:
                end_of_chain(found.idle, 1)
            raise
        stop.ignore()


def end_of_chain(idle: int, most: int) -> None:
    """Raise UserError, for code 2 is not queued again, when `idle` starts of a job that saved no new round are `most` or more."""
    if living.restarts() and idle >= most:
        raise AgreedError(
            "two starts of this Slurm job in a row saved no new round, so it is not queued again; give it a longer time limit "
            "(sbatch --time), or shorter rounds, and submit it anew"
        )
