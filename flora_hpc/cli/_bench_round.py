"""`flora-hpc bench round`: where a round's time goes."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flora_hpc import configfile
from flora_hpc.cli._args import AsJson, OptionalConfig, Overrides, Plugins, use_plugins, whole_numbers
from flora_hpc.cli._bench_page import columns, machine, page, read, tell_result, teller
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
    given = [f"rounds={rounds}", *([f"cohort.size={clients}"] if clients else []), *(overrides or [])]
    populations = whole_numbers("--registered", registered, "10000,1000000") if registered else []
    changes = [[*given, f"partition.num_clients={number}"] for number in populations] or [given]
    configs: list[Config] = []
    tell = teller(me)

    def load() -> Config:
        from flora_hpc.bench import round as part  # torch and open_clip take seconds to import

        for change in changes:
            use_plugins(plugin)
            resolved = read(path, change, tell)
            part.check(resolved, me, bare)
            configs.append(resolved)
        if len(configs) > 1:
            check_comparable(configs[0])
        return configs[0]

    with job_with_config(me, load, lambda: configfile.load_comm(path, given)) as (comm, _):
        from flora_hpc.bench import round as part

        result = part.measure(configs, comm, me, repeats, bare, tell)
    if result is None:
        return
    tell_result(result, as_json, show)


def check_comparable(config: Config) -> None:
    """Raise UserError unless populations of any size play the same cohort on examples of the same kind."""
    if config.cohort.size is None:
        raise UserError("--registered: a share of the clients would be another cohort in each population; give --clients as well")
    if getattr(config.partition, "examples_per_client", None) is None:
        raise UserError(
            "--registered: clients that share out the examples have fewer of them in a larger population; set "
            "-s partition.examples_per_client=32, so that each draws its own"
        )


def show(console: Console, result: dict[str, Any]) -> None:
    """The measurement as a table, and what the numbers mean."""
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
    first, *others = result["populations"]
    for other in others:
        lines.append(
            f"{other['registered']:,} clients registered: {seconds(other['round_seconds'])} a round, [bold]{other['ratio']:.3f}[/] "
            f"times that with {first['registered']:,}"
        )
    named = {
        "measured": f"medians over {result['num_rounds']} rounds of {result['repeats']} runs on {ranks} rank{'s' * (ranks > 1)}, "
        "log included; a round's seconds are means over ranks",
        "framework": "all but training, collectives, waiting and evaluation",
        "machine": f"{machine(result)}, backend {result['backend']}",
    }
    page(console, title, table, lines, named, {"rounds": result["round_seconds_quartiles"]})
