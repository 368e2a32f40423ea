"""`flora-hpc bench round`: where a round's time goes."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flora_hpc import configfile
from flora_hpc.cli._args import AsJson, OptionalConfig, Overrides, Plugins, use_plugins, whole_numbers
from flora_hpc.cli._bench_page import columns, machine, page, print_result, progress_printer, read
from flora_hpc.cli._job import job_with_config
from flora_hpc.comm import launch
from flora_hpc.config import Config
from flora_hpc.errors import UserError
from flora_hpc.records.views import seconds

DEFAULT = Path(__file__).parent.parent / "bench" / "round.yaml"


def round_(
    config: OptionalConfig = None,
    overrides: Overrides = None,
    plugin: Plugins = None,
    clients: Annotated[
        int | None, typer.Option(min=1, help="clients of a round; by default 1,000, or what CONFIG says", show_default=False)
    ] = None,
    registered: Annotated[
        str | None,
        typer.Option(metavar="N,M,...", help="registered clients; several numbers are played in turn and compared"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="rounds of a run, of which the first warms up")] = 6,
    repeats: Annotated[int, typer.Option(min=1, help="runs")] = 3,
    bare: Annotated[
        bool, typer.Option("--bare", help="also the same tensor operations in a bare loop, in turn with the runs")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show where a round's time goes. Start it like a run: alone, or with srun, mpiexec or torchrun."""
    me = launch.detect()
    path = config or DEFAULT
    common = [f"rounds={rounds}", *([f"cohort.size={clients}"] if clients else []), *(overrides or [])]
    populations = whole_numbers("--registered", registered, "10000,1000000") if registered else []
    changes = [[*common, f"partition.num_clients={number}"] for number in populations] or [common]
    configs: list[Config] = []
    progress = progress_printer(me)

    def load() -> Config:
        from flora_hpc.bench import round as part  # torch and open_clip take seconds to import

        for change in changes:
            use_plugins(plugin)
            resolved = read(path, change, progress)
            part.check(resolved, me, bare)
            configs.append(resolved)
        if len(configs) > 1:
            check_comparable(configs[0])
        return configs[0]

    with job_with_config(me, load, lambda: configfile.load_comm(path, common)) as (comm, _):
        from flora_hpc.bench import round as part

        result = part.measure(configs, comm, me, repeats, bare, progress)
    if result is None:
        return
    print_result(result, as_json, show)


def check_comparable(config: Config) -> None:
    """Raise UserError unless populations of all sizes have cohorts of one size and clients with as many examples."""
    if config.cohort.size is None:
        raise UserError("--registered: a share of the clients would be another cohort in each population; give --clients as well")
    if getattr(config.partition, "examples_per_client", None) is None:
        raise UserError(
            "--registered: clients that share out the examples have fewer of them in a larger population; set "
            "-s partition.examples_per_client=32, so that each draws its own"
        )


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the measurement as a table, and the meaning of the numbers."""
    clients, ranks = result["num_clients"], result["world_size"]
    title = f"{result['model']}, {result['method']}, {result['dataset']}, {clients:,} clients a round"
    table = columns(["phase"], ["time", "share"])
    for phase, value in result["seconds"].items():
        table.add_row(phase, seconds(value), f"{result['shares'][phase]:.1%}")
    lines = [
        f"[bold]{seconds(result['round_seconds'])}[/] a round, [bold]{result['client_updates_per_second']:,.0f}[/] client updates "
        f"per second, framework share [bold]{result['framework_share']:.1%}[/]"
    ]
    if loop := result["bare"]:
        lines.append(
            f"bare loop: {seconds(loop['round_seconds'])} a round, {loop['client_updates_per_second']:,.0f} client updates per "
            f"second; whole rounds reach [bold]{loop['ratio']:.1%}[/] of that"
        )
    first, *rows = result["populations"]
    for row in rows:
        lines.append(
            f"{row['registered']:,} clients registered: {seconds(row['round_seconds'])} a round, [bold]{row['ratio']:.3f}[/] "
            f"times that with {first['registered']:,}"
        )
    notes = {
        "measured": f"medians over {result['num_rounds']} rounds of {result['repeats']} runs on {ranks} rank{'s' * (ranks > 1)}, "
        "log included; a round's seconds are means over ranks",
        "framework": "all but training, collectives, waiting and evaluation",
        "machine": f"{machine(result)}, backend {result['backend']}",
    }
    page(console, title, table, lines, notes, {"rounds": result["round_seconds_quartiles"]})
