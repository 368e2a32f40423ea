"""`flora-hpc bench report`: the cost of a page on a long run with many clients."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal

from flora_hpc import extras
from flora_hpc.cli._args import AsJson
from flora_hpc.cli._bench_page import beware, print_result, progress_printer, remarks


def report(
    rounds: Annotated[int, typer.Option(min=1, help="rounds of the made-up run")] = 1000,
    clients: Annotated[int, typer.Option(min=1, help="clients, all of which train in every round")] = 1000,
    ranks: Annotated[int, typer.Option(min=1, help="ranks")] = 16,
    records: Annotated[str, typer.Option(help="records.clients of the made-up run: all, none, or 'sample 1000'")] = "all",
    repeats: Annotated[int, typer.Option(min=1, help="timed repeats, of which the median counts")] = 3,
    as_json: AsJson = False,
) -> None:
    """Make a page over a made-up run: seconds, peak memory, and its size. By default a million rows of clients."""
    extras.need("bench report", "matplotlib", "jinja2")
    from flora_hpc.bench import report as part

    progress_printer()(f"writing a run of {rounds:,} rounds, then {repeats} x its report")
    print_result(part.measure(rounds, clients, ranks, repeats, records), as_json, show)


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the measurement in a line, and its run and machine."""
    memory, page = (f"{result[name] / 1e6:,.{digits}f} MB" for name, digits in (("peak_bytes", 0), ("page_bytes", 2)))
    cost = f"{result['seconds']:.2f} s, {memory} at its peak, a page of {page}"
    console.print(f"[bold]flora-hpc report[/]: [bold]{cost}[/]")
    console.print(f"rows of one round are read in [bold]{result['read_round_seconds'] * 1000:,.0f} ms[/]")
    run = f"{result['rounds']:,} rounds on {result['ranks']:,} ranks, {result['client_rows']:,} rows of clients"
    notes = {
        "run": f"{run}, {decimal(result['run_bytes'])}",
        "measured": f"the whole command in a process of its own, imports included; median of {len(result['repeat_seconds'])}",
        "machine": result["processor"],
    }
    spread = {"report": max(result["repeat_seconds"]) / min(result["repeat_seconds"])}
    console.print(remarks(notes | beware(spread)))
