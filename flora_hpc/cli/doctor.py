"""`flora-hpc doctor`: the ranks, devices and libraries of this machine and launcher, and their problems."""

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flora_hpc import configfile, screen
from flora_hpc.cli._job import job
from flora_hpc.cli._limit import time_limit
from flora_hpc.cli._ranks import gather, mismatches, nodes, notes
from flora_hpc.comm import launch, mpilibrary
from flora_hpc.comm.communicator import AgreedError, Choice, choose
from flora_hpc.comm.launch import Launch
from flora_hpc.errors import UserError
from flora_hpc.versions import versions

LOG_WIDTH = 160  # columns where the output is no terminal
SCHEMA = 1  # of --json: raised when a key goes or changes its meaning
RANKS = ("rank", "host", "local rank", "device", "cores", "threads", "library", "place taken from")
NODES = ("host", "ranks", "processor", "cores", "memory")
NUMBERS = ("rank", "local rank", "threads")


def doctor(
    backend: Annotated[str, typer.Option(help="backend to try: auto, serial, mpi, gloo or nccl")] = "auto",
    timeout: Annotated[float, typer.Option(min=1, help="seconds for the ranks to meet and to add up a number")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="all of it as one JSON object")] = False,
) -> None:
    """Show ranks, devices and libraries, and try a collective. Start it the way the run will be started."""
    me = launch.detect()
    config = configfile.comm_with(backend)

    import numpy as np

    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else LOG_WIDTH, highlight=False, quiet=as_json)
    choice, library, installed = choose(me, config), mpi_library(), versions()
    for name, text in describe(me, choice, library, installed).items():
        console.print(f"[dim]{name}:[/] {escape(text)}", soft_wrap=True)
    message = f"flora-hpc: the ranks did not meet and add up a number within {timeout:g} seconds: {advice(choice.backend)}"
    with time_limit(timeout, message if me.rank == 0 else ""), job(me, config) as comm:
        rows = gather(comm, me, config, library, installed)
        console.print(
            table_of(f"{len(rows)} rank{'s' * (len(rows) > 1)}, backend {comm.name}", RANKS, [row.cells() for row in rows])
        )
        lines = nodes(rows)
        console.print(table_of(f"{len(lines)} node{'s' * (len(lines) > 1)}", NODES, lines))
        ones, start = np.ones(1, np.int64), time.perf_counter()
        comm.allreduce(ones)
        seconds = time.perf_counter() - start
        problems = mismatches(rows)
        if ones[0] != comm.size:
            problems.append(f"a sum of ones over {comm.size} ranks gave {ones[0]}: the library of backend {comm.name} is broken")
        sentences = notes(rows, choice)
        if as_json and comm.rank == 0:
            screen.for_programs()
            description = as_dict(me, choice, library, installed)
            results = {"collective_seconds": seconds, "problems": problems, "notes": sentences}
            print(json.dumps(description | {"ranks": [asdict(row) for row in rows]} | results, indent=2), flush=True)
        if problems:
            raise AgreedError("\n".join(problems))
        console.print(f"[green]a collective over all ranks works[/] ({1000 * seconds:.2g} ms)")
        for note in sentences:
            console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)


def as_dict(me: Launch, choice: Choice, library: str, versions: dict[str, str]) -> dict[str, Any]:
    """The facts of `describe`, for programs."""
    return {
        "schema": SCHEMA,
        "system": platform.system(),
        "machine": platform.machine(),
        "launcher": {"name": me.launcher, "num_ranks": me.size, "num_local_ranks": me.local_size, "mpi": slurm_mpi(me)},
        "backend": {"name": choice.backend, "why": choice.why},
        "mpi_library": library,
        "environment": {
            name: os.environ.get(name) for name in ("MKL_CBWR", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
        },
        "versions": versions,
    }


def slurm_mpi(me: Launch) -> str:
    """Slurm's --mpi; empty when not known."""
    return os.environ.get("SLURM_MPI_TYPE", "") if me.launcher == "slurm" else ""


def describe(me: Launch, choice: Choice, library: str, versions: dict[str, str]) -> dict[str, str]:
    """Describe rank 0's machine and the job: label -> text."""
    flag = f" --mpi={slurm_mpi(me)}" if slurm_mpi(me) else ""
    return {
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {len(os.sched_getaffinity(0))} allowed",
        "launcher": f"{me.launcher}{flag}: {me.size} process{'es' * (me.size > 1)}, {me.local_size} on this node",
        "backend": f"{choice.backend} ({choice.why})",
        "MPI library": library,
        "matrix products": f"MKL_CBWR={os.environ.get('MKL_CBWR', '(not set)')}",
        "versions": ", ".join(f"{name} {text}" for name, text in versions.items()),
    }


def mpi_library() -> str:
    """Name and version of the library that mpi4py loads, or why there is none; MPI is not initialised for this."""
    try:
        return mpilibrary.loaded().name
    except UserError as error:
        return f"none: {error}"


def table_of(title: str, headings: Sequence[str], lines: list[list[str]]) -> Table:
    """A table of these lines; long cells wrap."""
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in NUMBERS else "left", overflow="fold")
    for line in lines:
        table.add_row(*map(escape, line))
    return table


def advice(backend: str) -> str:
    """Advice for ranks that do not meet."""
    if backend == "mpi":
        return (
            "check that every node loads the same MPI library, or try --backend gloo, which tells the network's faults from MPI's"
        )
    where = f"{os.environ.get('MASTER_ADDR', 'the first node')}:{os.environ.get('MASTER_PORT', '')}".rstrip(":")
    return f"check that every rank runs and reaches {where}; GLOO_SOCKET_IFNAME (or NCCL_SOCKET_IFNAME) names the network to use"
