"""`flora-hpc bench scale`: client updates per second on more and more ranks."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flora_hpc.cli._args import AsJson, OptionalConfig, Overrides, Plugins, use_plugins, whole_numbers
from flora_hpc.cli._bench_page import columns, machine, page, read, tell_result, teller
from flora_hpc.records.views import seconds

DEFAULT = Path(__file__).parent.parent / "bench" / "scale.yaml"


class Launcher(StrEnum):
    """What starts the ranks."""

    mpiexec = "mpiexec"
    torchrun = "torchrun"


def scale(
    config: OptionalConfig = None,
    overrides: Overrides = None,
    plugin: Plugins = None,
    ranks: Annotated[
        str | None, typer.Option(metavar="1,N,...", help="numbers of ranks; by default 1, 2, 4, ... and all cores")
    ] = None,
    launcher: Annotated[
        Launcher | None, typer.Option(help="what starts them; by default mpiexec where there is one", show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="rounds of a run, of which the first warms up")] = 6,
    repeats: Annotated[int, typer.Option(min=1, help="runs on each number of ranks, in turn")] = 3,
    independent: Annotated[
        bool, typer.Option("--independent", help="also as many runs at once that know nothing of each other: what the cores allow")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare numbers of ranks, each on a core of its own: client updates per second. Starts the ranks itself."""
    chosen = whole_numbers("--ranks", ranks, "1,2,4") if ranks else None
    use_plugins(plugin)
    tell = teller()
    resolved = read(config or DEFAULT, [f"rounds={rounds}", *(overrides or [])], tell)

    from flora_hpc.bench import scale as part  # torch and open_clip take seconds to import

    chosen = chosen or part.default_ranks(len(part.cores()))
    part.check(resolved, chosen)
    result = part.measure(resolved, chosen, launcher and launcher.value, repeats, independent, tell)
    tell_result(result, as_json, show)


def show(console: Console, result: dict[str, Any]) -> None:
    """The measurement as a table, and what the numbers mean."""
    title = f"{result['model']}, {result['method']}, {result['dataset']}, {result['num_clients']:,} clients a round"
    headings = ("ranks", "client updates\nper second", "times\none rank", "efficiency", "wait", "comm", "start-up")
    table = columns([], headings)
    for one in result["ranks"]:
        table.add_row(
            f"{one['num_ranks']}",
            f"{one['client_updates_per_second']:,.0f}",
            f"{one['speedup']:.2f}",
            f"{one['efficiency']:.1%}",
            *(f"{one['shares'][phase]:.1%}" for phase in ("wait", "comm")),
            seconds(one["start_up_seconds"]),
        )
    allowed = [
        f"{one['num_ranks']} ranks reach {one['speedup'] / one['independent_speedup']:.1%} of the throughput of {one['num_ranks']} "
        f"independent runs at once, which are {one['independent_speedup']:.2f} times as fast as one alone"
        for one in result["ranks"]
        if one["independent_speedup"]
    ]
    named = {
        "measured": f"medians over {result['rounds']} whole rounds, of {result['repeats']} runs each, in turn; waiting and "
        f"collectives included; {result['num_clients']:,} clients to share; each rank on a core of its own",
        "start-up": "from starting the launcher to round 0: processes, imports, model, features",
        "machine": f"{machine(result)} a rank, {result['launcher']}, backend {result['backend']}",
    }
    if allowed:
        named["independent"] = "; ".join(allowed)
    repeats = {f"{one['num_ranks']} ranks": one["repeat_updates_per_second"] for one in result["ranks"]}
    page(console, title, table, [], named, repeats)
