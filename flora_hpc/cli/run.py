"""`flora-hpc run`: the main job, under any launcher."""

import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flora_hpc import configfile
from flora_hpc.cli._args import ConfigFile, Overrides
from flora_hpc.cli._job import job_with_config
from flora_hpc.cli._progress import Bar
from flora_hpc.comm import launch
from flora_hpc.comm.communicator import together
from flora_hpc.config import Config
from flora_hpc.errors import UserError

STARTED = time.perf_counter()


class View(StrEnum):
    """How a run is shown. Under mpiexec the output is a pipe, so a live view there must be asked for."""

    auto = "auto"
    live = "live"
    plain = "plain"


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="run directory; by default runs/<config name>-<time>", show_default=False)
    ] = None,
    view: Annotated[
        View, typer.Option(help="live view or one plain line a round; auto asks whether this is a terminal")
    ] = View.auto,
) -> None:
    """Run an experiment. Start it with srun, mpiexec or torchrun, or alone."""
    me = launch.detect()
    job = f"-{os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""  # tasks of an array may start together
    out = out or Path("runs") / f"{config.stem}-{time.strftime('%Y%m%d-%H%M%S')}{job}"

    def load() -> Config:
        resolved, notes = configfile.load(config, overrides)
        for note in notes:
            print(f"note: {note}")
        return resolved

    with job_with_config(me, load, lambda: configfile.load_comm(config, overrides)) as (comm, resolved):
        together(comm, lambda: refuse_used(out) if comm.rank == 0 else None)

        from flora_hpc import simulation  # torch and open_clip take seconds to import
        from flora_hpc.observers import hdf5, plain, terminal

        seen = sys.stdout.isatty() and me.launcher != "openmpi"  # its ranks always have a terminal, even when a log file is read
        live = view == View.live or (view == View.auto and seen)
        observers = (hdf5, terminal if live else plain)
        simulation.run(
            resolved, comm, me, out, lambda: [each.build(out) for each in observers], STARTED, Bar("features", live=live)
        )


def refuse_used(out: Path) -> None:
    """Raise UserError when `out` cannot become a new run directory."""
    if any((out / name).exists() for name in ("run.h5", "config.yaml", "adapter")):
        raise UserError(f"--out {out}: already holds a run; choose another directory, or remove this one")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; choose a directory")
