"""`flora-hpc bench log`: the cost of run.h5 for a run."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal

from flora_hpc import configfile
from flora_hpc.cli._args import AsJson, OptionalConfig, Overrides, Plugins, use_plugins
from flora_hpc.cli._bench_page import columns, machine, page, print_result, progress_printer, read
from flora_hpc.cli._job import job_with_config
from flora_hpc.comm import launch
from flora_hpc.config import Config
from flora_hpc.records.views import seconds

DEFAULT = Path(__file__).parent.parent / "bench" / "round.yaml"


def log(
    config: OptionalConfig = None,
    overrides: Overrides = None,
    plugin: Plugins = None,
    clients: Annotated[
        int | None, typer.Option(min=1, help="clients of a round; by default 1,000, or what CONFIG says", show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="rounds of a run, of which the first warms up")] = 6,
    repeats: Annotated[int, typer.Option(min=1, help="runs with the log, and as many without")] = 3,
    as_json: AsJson = False,
) -> None:
    """Measure what the log costs a run. Start it like a run: alone, or with srun, mpiexec or torchrun."""
    me = launch.detect()
    path = config or DEFAULT
    changes = [f"rounds={rounds}", *([f"cohort.size={clients}"] if clients else []), *(overrides or [])]
    progress = progress_printer(me)

    def load() -> Config:
        from flora_hpc.bench import round as part  # torch and open_clip take seconds to import

        use_plugins(plugin)
        resolved = read(path, changes, progress)
        part.check(resolved, me, with_bare=False)
        return resolved

    with job_with_config(me, load, lambda: configfile.load_comm(path, changes)) as (comm, resolved):
        from flora_hpc.bench import log as part

        result = part.measure(resolved, comm, me, repeats, progress)
    if result is not None:
        print_result(result, as_json, show)


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the measurement as a table, and the meaning of the numbers."""
    clients, ranks = result["num_clients"], result["world_size"]
    title = f"{result['model']}, {result['method']}, {result['dataset']}, {clients:,} clients a round"
    table = columns([""], ["round", "log", "writing"])
    logged, silent = result["with_log"], result["without_log"]
    table.add_row("with run.h5", *map(seconds, (logged["round_seconds"], logged["log_seconds"], result["writer_seconds"])))
    table.add_row("without", seconds(silent["round_seconds"]), seconds(silent["log_seconds"]), "-")
    lines = [
        f"log and writing are [bold]{result['cost_share']:.2%}[/] of a round; with run.h5 it takes "
        f"[bold]{result['round_ratio']:.3f}[/] times the time",
        f"[bold]{result['growth_per_client_row']:.1f}[/] bytes for each client and round, "
        f"{result['bytes_per_client_row']:.1f} with all else in the file ({decimal(result['file_bytes'])})",
    ]
    notes = {
        "measured": f"medians over {result['num_rounds']} rounds of {result['repeats']} runs on each side, in turn, on {ranks} "
        f"rank{'s' * (ranks > 1)}",
        "log": "a round's phase of that name: handing over the round before, and checkpoints, which both sides write",
        "writing": "processor time of the thread of rank 0 that writes, while the next round is played",
        "machine": f"{machine(result)}, backend {result['backend']}",
    }
    repeats = {"runs with run.h5": logged["repeat_round_seconds"], "runs without": silent["repeat_round_seconds"]}
    page(console, title, table, lines, notes, repeats)
