"""`flora-hpc run`: the main job, under any launcher."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from flora_hpc import configfile, rundir, screen
from flora_hpc.cli._args import ConfigFile, Overrides, Plugins, View, has_terminal, use_plugins
from flora_hpc.cli._job import job_with_config
from flora_hpc.cli._progress import Bar
from flora_hpc.comm import launch, stop
from flora_hpc.comm.communicator import Communicator, together
from flora_hpc.comm.launch import Launch
from flora_hpc.config import Config
from flora_hpc.errors import StoppedError, UserError
from flora_hpc.job import aborter
from flora_hpc.owner import living
from flora_hpc.owner.claim import Claim

STARTED = time.perf_counter()
LOADING = "loading PyTorch, the model and the data ..."  # printed before, since it takes seconds


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
    stop.note_early()
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
        together(comm, lambda: check_trackers(track) if comm.rank == 0 else None)
        contents, folder = rundir.enter(comm, out, resolved, claim, resume)
        if contents.finished:
            print(f"the run in {folder} has finished already")
            return
        with ending_chain(contents.idle):
            play(resolved, comm, me, claim, folder, Display(view, quiet, tuple(track or ()), contents.unfinished))
        stop.ignore()


@dataclass(frozen=True)
class Display:
    """How a run is shown, and whether it is resumed."""

    view: View
    quiet: bool
    track: tuple[str, ...]
    resumes: bool


def play(config: Config, comm: Communicator, me: Launch, claim: Claim, folder: Path, display: Display) -> None:
    """Play a run, with the observers that show it."""
    from flora_hpc import loop  # torch and open_clip take seconds to import
    from flora_hpc.observers import _trackerthread, hdf5, plain, quiet, terminal

    can_redraw = has_terminal() and me.launcher != "openmpi"  # its ranks always have a terminal, also with a log file
    live = not display.quiet and (display.view == View.live or (display.view == View.auto and can_redraw))
    shown = quiet if display.quiet else terminal if live else plain
    options = loop.RunOptions(
        folder,
        lambda: [claim, hdf5.build(folder), shown.build(folder), _trackerthread.build(display.track, folder)],
        Bar("features", live=live) if not display.quiet else lambda done, total: None,
        STARTED,
        display.resumes,
        aborter(comm),
        claim.check,
        stop.Stop(),
    )
    with options.stop.listening():
        loop.run(config, comm, me, options)


@contextmanager
def ending_chain(idle: int) -> Iterator[None]:
    """A run inside that is stopped before it saves a new round ends the chain of requeued jobs, if the start before did so, too."""
    try:
        yield
    except StoppedError as error:
        if error.num_rounds == 0:
            rundir.end_of_chain(idle, 1)
        raise


def check_trackers(names: list[str] | None) -> None:
    """Raise UserError when a tracker does not exist or is not installed."""
    if names:
        from flora_hpc.observers import _tracker

        _tracker.check(names)
