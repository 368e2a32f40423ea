"""`flora-hpc bench combines`: seconds and memory of the combine parts of algorithms."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal

from flora_hpc import configfile
from flora_hpc.cli._args import AsJson
from flora_hpc.cli._bench_page import columns, machine, page, print_result, progress_printer
from flora_hpc.cli._job import job
from flora_hpc.comm import launch
from flora_hpc.errors import UserError
from flora_hpc.records.views import seconds

DEFAULT = "fedavg,hetlora,flexlora,fedex_lora,median,krum"


def combines(
    names: Annotated[str, typer.Option("--algorithms", metavar="A,B,...", help="algorithms with a combine part")] = DEFAULT,
    clients: Annotated[int, typer.Option(min=1, help="clients of a round")] = 100,
    layers: Annotated[int, typer.Option(min=1, help="layers with an adapter")] = 12,
    width: Annotated[int, typer.Option(min=1, help="rows and columns of a layer")] = 512,
    rank: Annotated[int, typer.Option(min=1, help="rank of the adapters")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="timed repeats, of which the median counts")] = 3,
    backend: Annotated[str, typer.Option(help="auto, serial, mpi or gloo")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure how long algorithms take to make one direction of all updates. Start it like a run.

    By default, updates are those of the paper's flora on ViT-B-32: 24,576 numbers.
    """
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    if not chosen:
        raise UserError("--algorithms: names no algorithm; give for example --algorithms fedavg,median")
    me, config = launch.detect(), configfile.comm_with(backend)
    progress = progress_printer(me)
    with job(me, config) as ranks:
        from flora_hpc.bench import combines as part  # torch takes seconds to import

        result = part.measure(ranks, chosen, part.Task(clients, layers, width, rank, repeats), progress)
    print_result(result, as_json, show)


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the measurement as a table, and the meaning of the numbers."""
    ranks = result["world_size"]
    title = f"{result['clients']:,} clients x {result['num_params']:,} numbers, {ranks} rank{'s' * (ranks > 1)}"
    table = columns(["algorithm"], ["seconds", "per client", "peak memory\nso far"])
    for name, row in result["algorithms"].items():
        each = seconds(row["seconds"] / result["clients"])
        table.add_row(name, seconds(row["seconds"]), each, decimal(row["peak_memory_bytes"]))
    notes = {
        "measured": "from random updates to the direction and new factors; of the repeats the median",
        "not measured": "training; the random updates are drawn within the time",
        "peak memory": "of the largest rank, since the process started: measure one algorithm alone to know its own",
        "machine": machine(result),
    }
    page(console, title, table, [], notes, {name: row["repeat_seconds"] for name, row in result["algorithms"].items()})
