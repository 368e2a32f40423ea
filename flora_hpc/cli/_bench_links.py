"""`flora-hpc bench comm --collectives` and `--pairs`: collectives by size, and the links between nodes."""

from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from flora_hpc import configfile
from flora_hpc.cli._bench_page import columns, machine, page, progress_printer
from flora_hpc.cli._job import job
from flora_hpc.comm.launch import Launch
from flora_hpc.records.views import seconds

POWERS = ",".join(str(2**power) for power in range(3, 21))
MOST_COLUMNS = 12  # of a matrix in a terminal; --json has all
SHADES = ((0.5, "bold white on red"), (0.8, "black on yellow"))  # share of the median rate -> style of a slow link


def measure(me: Launch, names: str | None, pairs: bool, sizes: list[int], repeats: int | None, backend: str) -> dict[str, Any]:
    """Time collectives, or pairs of nodes, on all ranks."""
    config = configfile.comm_with(backend)
    progress = progress_printer(me)
    with job(me, config) as ranks:
        from flora_hpc.bench import comm, links  # torch takes seconds to import

        collectives = links.find(names) if names else []
        result, _ = comm.where(ranks, me, config)
        result["collectives"] = links.measure(ranks, collectives, sizes, repeats, progress)
        result["pairs"] = links.pairs(ranks, repeats, progress) if pairs else None
    return result


def show(console: Console, result: dict[str, Any]) -> None:
    """Print a table of collectives, and the matrix of pairs."""
    ranks, hosts = result["world_size"], result["num_hosts"]
    title = f"{ranks} rank{'s' * (ranks > 1)} on {hosts} host{'s' * (hosts > 1)}, backend {result['backend']}"
    table = columns(["collective", "ranks"], ["bytes", "fastest rank", "median", "slowest rank"], no_wrap=True)
    for row in result["collectives"]:
        times = (seconds(row[f"{name}_seconds"]) for name in ("min", "median", "max"))
        table.add_row(row["what"], row["scope"], f"{row['bytes']:,}", *times)
    notes = {
        "measured": "each rank's mean over the repeats, after a warm-up; ranks meet before a repeat, which is not timed",
        "exchange": "bytes from every rank to every rank; gather: bytes of each rank",
        "machine": machine(result),
    }
    if pairs := result["pairs"]:
        notes |= slowest_pair(pairs)
        if not result["collectives"]:
            table = matrix(pairs)
        else:
            console.print(matrix(pairs))
    page(console, title, table, [], notes)


def matrix(pairs: dict[str, Any]) -> Any:
    """Rates of all pairs as a table whose slow links are coloured."""
    names, rates = pairs["names"][:MOST_COLUMNS], pairs["bytes_per_second"]
    median = sorted(rate for row in rates for rate in row if rate)[(len(rates) * (len(rates) - 1)) // 2]
    table = columns(["allreduce of a MiB"], names, no_wrap=True)
    for name, row in zip(names, rates, strict=False):
        cells = []
        for rate in row[:MOST_COLUMNS]:
            style = next((style for share, style in SHADES if rate and rate < share * median), "")
            cells.append(Text(f"{decimal(round(rate))}/s" if rate else "-", style))
        table.add_row(name, *cells)
    return table


def slowest_pair(pairs: dict[str, Any]) -> dict[str, str]:
    """Which pair is slowest."""
    a, b = pairs["slowest"]
    hidden = len(pairs["names"]) - MOST_COLUMNS
    more = {"not shown": f"{hidden} more; --json has all"} if hidden > 0 else {}
    return {"slowest pair": f"{a} and {b}, {pairs['slowest_over_median']:.2f} of the median rate"} | more
