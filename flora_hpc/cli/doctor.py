"""`flora-hpc doctor`: what this machine and launcher give, and what is wrong with it."""

import os
import platform
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from flora_hpc.comm import launch
from flora_hpc.config import CommConfig
from flora_hpc.errors import UserError


def doctor(backend: Annotated[str, typer.Option(help="backend to try: auto, serial, mpi, gloo or nccl")] = "auto") -> None:
    """Show ranks, devices and libraries, and try a collective. Start it the way the run will be started."""
    me = launch.detect()
    try:
        config = CommConfig(backend=backend)
    except ValueError as error:
        raise UserError(f"--backend: {str(error).splitlines()[2].strip()}") from None

    import numpy as np

    from flora_hpc import simulation
    from flora_hpc.cli._job import job
    from flora_hpc.comm import communicator, devices

    console = Console()
    facts = Table(show_header=False, title="this machine", title_justify="left")
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    facts.add_row(
        "system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {len(os.sched_getaffinity(0))} allowed"
    )
    facts.add_row("launcher", f"{me.launcher}: {me.size} process{'es' * (me.size > 1)}, {me.local_size} on this node")
    facts.add_row("backend", communicator.choose(me, config))
    facts.add_row("matrix products", f"MKL_CBWR={os.environ.get('MKL_CBWR', '(not set)')}")
    facts.add_row("versions", ", ".join(f"{name} {text}" for name, text in simulation.versions().items()))
    console.print(facts)
    with job(me, config) as comm:
        device = communicator.together(comm, lambda: devices.pick(me, config))
        places = devices.places(comm, me, device, devices.share_cores(comm, me))
        ones = np.ones(1, np.int64)
        comm.allreduce(ones)
        table = Table(title=f"{comm.size} rank{'s' * (comm.size > 1)}, backend {comm.name}", title_justify="left")
        for heading in ("rank", "host", "local rank", "device", "threads"):
            table.add_column(heading, justify="right")
        for place in places:
            table.add_row(str(place.rank), place.host, str(place.local_rank), place.device, str(place.num_threads))
        console.print(table)
        if ones[0] != comm.size:
            raise UserError(f"a sum of ones over {comm.size} ranks gave {ones[0]}: the {comm.name} library is broken")
        console.print(f"[green]a collective over all ranks works[/]; MPI library: {mpi_library()}")


def mpi_library() -> str:
    """Name and version of the library that mpi4py loads, or why there is none.

    MPI is not initialised for this: under a launcher that belongs to another library that may end the process.
    """
    try:
        import mpi4py

        mpi4py.rc(initialize=False, finalize=False)
        from mpi4py import MPI

        return " ".join(MPI.Get_library_version().split("\n")[0].split())
    except ImportError:
        return "none, since mpi4py is not installed"
    except RuntimeError as error:  # what mpi4py raises when there is no libmpi
        return f"none: {' '.join(str(error).split())}"
