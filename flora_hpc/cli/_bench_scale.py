"""`flora-hpc bench scale`: client updates per second by number of ranks."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flora_hpc.cli._args import AsJson, OptionalConfig, Overrides, Plugins, use_plugins, whole_numbers
from flora_hpc.cli._bench_page import columns, machine, page, print_result, progress_printer, read
from flora_hpc.records.views import seconds

DEFAULT = Path(__file__).parent.parent / "bench" / "scale.yaml"


class Launcher(StrEnum):
    """The launcher of the ranks."""

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
    rank_counts = whole_numbers("--ranks", ranks, "1,2,4") if ranks else None
    use_plugins(plugin)
    progress = progress_printer()
    resolved = read(config or DEFAULT, [f"rounds={rounds}", *(overrides or [])], progress)

    from flora_hpc.bench import scale as part  # torch and open_clip take seconds to import

    rank_counts = rank_counts or part.default_ranks(len(part.cores()))
    part.check(resolved, rank_counts)
    result = part.measure(resolved, rank_counts, launcher and launcher.value, repeats, independent, progress)
    print_result(result, as_json, show)


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the measurement as a table, and the meaning of the numbers."""
    title = f"{result['model']}, {result['method']}, {result['dataset']}, {result['num_clients']:,} clients a round"
    headings = ("ranks", "client updates\nper second", "times\none rank", "efficiency", "wait", "comm", "start-up")
    table = columns([], headings)
    for row in result["ranks"]:
        table.add_row(
            f"{row['num_ranks']}",
            f"{row['client_updates_per_second']:,.0f}",
            f"{row['speedup']:.2f}",
            f"{row['efficiency']:.1%}",
            *(f"{row['shares'][phase]:.1%}" for phase in ("wait", "comm")),
            seconds(row["start_up_seconds"]),
        )
    independent = [
        f"{row['num_ranks']} ranks reach {row['speedup'] / row['independent_speedup']:.1%} of the throughput of {row['num_ranks']} "
        f"independent runs at once, which are {row['independent_speedup']:.2f} times as fast as one alone"
        for row in result["ranks"]
        if row["independent_speedup"]
    ]
    notes = {
        "measured": f"medians over {result['rounds']} whole rounds, of {result['repeats']} runs each, in turn; waiting and "
        f"collectives included; {result['num_clients']:,} clients to share; each rank on a core of its own",
        "start-up": "from starting the launcher to round 0: processes, imports, model, features",
        "machine": f"{machine(result)} a rank, {result['launcher']}, backend {result['backend']}",
    }
    if independent:
        notes["independent"] = "; ".join(independent)
    repeats = {f"{row['num_ranks']} ranks": row["repeat_updates_per_second"] for row in result["ranks"]}
    page(console, title, table, [], notes, repeats)
