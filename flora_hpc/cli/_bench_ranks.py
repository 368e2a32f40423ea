"""`flora-hpc bench ranks`: what a round costs beside training on very many ranks."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal

from flora_hpc.cli._args import AsJson
from flora_hpc.cli._bench_page import columns, page, print_result, progress_printer
from flora_hpc.records.views import seconds


def ranks(
    simulate: Annotated[int, typer.Option(min=1, metavar="RANKS", help="ranks, one of which this process plays at a time")] = 4096,
    clients: Annotated[int, typer.Option(min=1, help="clients of a round, of ten times as many registered ones")] = 10**6,
    client_seconds: Annotated[
        float, typer.Option(min=1e-9, help="seconds in which a rank trains a client; 0.0012: flora-tiny, one step, one core")
    ] = 0.0012,
    records: Annotated[str, typer.Option(help="records.clients of the round: all, none, or 'sample 1000'")] = "all",
    repeats: Annotated[int, typer.Option(min=1, help="timed repeats of each term, of which the median counts")] = 3,
    as_json: AsJson = False,
) -> None:
    """Measure what does not get faster with more ranks: groups of a rank, reports on rank 0, log. No rank is started."""
    from flora_hpc.bench import ranks as part  # torch and open_clip take seconds to import

    print_result(part.measure(simulate, clients, client_seconds, repeats, progress_printer(), records), as_json, show)


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the terms as a table, and the efficiency that they imply."""
    num_ranks, num_clients = result["num_ranks"], result["num_clients"]
    table = columns(["a round's"], ["fixed sizes", "drawn sizes"])
    fixed, drawn = (result["schedule_seconds"][name] for name in ("fixed", "drawn"))
    table.add_row("training, each rank", *[seconds(result["train_seconds"])] * 2)
    table.add_row("cohort, sizes, groups, each rank", seconds(fixed), seconds(drawn))
    if result["records"] != "all":
        table.add_row("choice of rows, each rank", *[seconds(result["choice_seconds"])] * 2)
    table.add_row("reports, rank 0", *[seconds(result["reports_seconds"])] * 2)
    table.add_row("wire to rank 0", *[seconds(result["wire_seconds"])] * 2)
    for name, text in (("given", "efficiency"), ("ten_times", "efficiency, training ten times as fast")):
        table.add_row(text, *(f"{result['efficiency'][sizes][name]:.1%}" for sizes in ("fixed", "drawn")))
    work, few = result["ranks_with_work"], result["few_clients"]
    lines = [
        f"rank 0 needs [bold]{decimal(max(0, result['rank_0_bytes']))}[/] more memory than with 1,000 clients a round",
        f"log: [bold]{result['log_bytes_per_client']:.1f}[/] bytes for each client and round, "
        f"{seconds(result['log_seconds'])} a round of the thread that writes it",
        f"{few:,} clients a round: [bold]{work['cpu']:,}[/] of {num_ranks:,} ranks have work, on GPUs {work['gpu']:,}",
    ]
    notes = {
        "measured": f"processor time in one process, medians of {result['repeats']}; nothing is sent",
        "training": f"given, not measured: {result['client_seconds']:g} s a client, "
        f"{-(-num_clients // num_ranks):,} clients a rank",
        "wire": f"assumed: {decimal(result['received_bytes'])} at {decimal(result['wire_bytes_per_second'])} a second",
        "rows": f"records.clients: {result['records']}",
        "drawn sizes": "clients of partition.name: quantity",
        "machine": f"{result['processor']}, PyTorch {result['versions']['torch']}",
    }
    page(console, f"{num_clients:,} clients a round on {num_ranks:,} ranks", table, lines, notes)
