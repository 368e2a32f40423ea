"""`flora-hpc run`: the main job, under any launcher."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from flora_hpc import configfile
from flora_hpc.cli._args import ConfigFile, Overrides
from flora_hpc.comm import launch
from flora_hpc.errors import UserError

STARTED = time.perf_counter()


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="run directory; by default runs/<config name>-<time>", show_default=False)
    ] = None,
) -> None:
    """Run an experiment. Start it with srun, mpiexec or torchrun, or alone."""
    me = launch.detect()
    resolved, notes = configfile.load(config, overrides)
    out = out or Path("runs") / f"{config.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    for note in notes:
        print(f"note: {note}")
    if me.rank == 0:
        refuse_used(out)  # before the seconds that imports and ranks take

    from flora_hpc import simulation  # torch and open_clip take seconds to import
    from flora_hpc.cli._job import job
    from flora_hpc.observers import hdf5, plain, terminal

    with job(me, resolved.comm) as comm:
        view = terminal if sys.stdout.isatty() else plain
        simulation.run(resolved, comm, me, out, lambda: [hdf5.build(out), view.build(out)], STARTED)


def refuse_used(out: Path) -> None:
    """Raise UserError when `out` cannot become a new run directory."""
    if any((out / name).exists() for name in ("run.h5", "config.yaml", "adapter")):
        raise UserError(f"--out {out}: already holds a run; choose another directory, or remove this one")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; choose a directory")
