"""`flora-hpc bench comm`: a round's allreduce against the library's own."""

import re
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal

from flora_hpc import configfile
from flora_hpc.cli import _bench_links
from flora_hpc.cli._args import AsJson
from flora_hpc.cli._bench_page import columns, machine, page, print_result, progress_printer
from flora_hpc.cli._job import job
from flora_hpc.comm import launch
from flora_hpc.errors import UserError
from flora_hpc.records.views import seconds

DEFAULT = "1KiB,64KiB,98312,1MiB,16MiB,64MiB"  # 98,312: about flora's adapter on ViT-B-32
UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def comm(
    sizes: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="bytes of the buffers: 98312, 64KiB, 1MiB, ...", show_default=False)
    ] = None,
    collectives: Annotated[
        str | None,
        typer.Option(
            metavar="all|NAMES",
            help="time allreduce, broadcast, gather, exchange, barrier instead, by powers of two: fastest to slowest rank",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="time each pair of nodes instead, to find a slow link")] = False,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="timed repeats of each size; by default more for small ones", show_default=False)
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, serial, mpi, gloo or nccl")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Compare a round's allreduce with the library's own. Start it like a run: with srun, mpiexec or torchrun."""
    me = launch.detect()
    if collectives or pairs:
        num_bytes = parse_sizes(sizes or _bench_links.POWERS)
        print_result(_bench_links.measure(me, collectives, pairs, num_bytes, repeats, backend), as_json, show)
        return
    num_bytes = parse_sizes(sizes or DEFAULT)
    config = configfile.comm_with(backend)
    progress = progress_printer(me)
    with job(me, config) as ranks:
        from flora_hpc.bench import comm as part  # torch takes seconds to import

        result = part.measure(ranks, me, config, num_bytes, repeats, progress)
    print_result(result, as_json, show)


def parse_sizes(text: str) -> list[int]:
    """Parse '1KiB,98312' into bytes. Raises UserError for a text that is no size, or no whole number of int64."""
    sizes = []
    for word in filter(None, map(str.strip, text.split(","))):
        match = re.fullmatch(r"(\d+)\s*([a-z]*)", word.lower())
        if match is None or match[2] not in UNITS:
            raise UserError(f"--sizes: {word!r} is no size; give for example --sizes 98312,64KiB,1MiB")
        num_bytes = int(match[1]) * UNITS[match[2]]
        if num_bytes < 8 or num_bytes % 8:
            raise UserError(f"--sizes: {word} is no whole number of int64, of 8 bytes each; take {num_bytes // 8 * 8 + 8} bytes")
        sizes.append(num_bytes)
    if not sizes:
        raise UserError("--sizes: names no size; give for example --sizes 98312,64KiB,1MiB")
    return sizes


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the measurement as a table, and the meaning of the numbers."""
    if "collectives" in result:
        _bench_links.show(console, result)
        return
    ranks, hosts = result["world_size"], result["num_hosts"]
    where = f"{ranks} rank{'s' * (ranks > 1)} on {hosts} host{'s' * (hosts > 1)}"
    title = f"{where}, backend {result['backend']}, {launch.started(result['launcher'])}"
    table = columns([], ["bytes", "ours", "library", "ratio", "difference", "bus"], no_wrap=True)
    for row in result["sizes"]:
        raw, rate = row["raw_seconds"], row["ours_bus_bytes_per_second"]
        table.add_row(
            f"{row['bytes']:,}",
            seconds(row["ours_seconds"]),
            "-" if raw is None else seconds(raw),
            "-" if raw is None else f"[bold]{row['ratio']:.2f}[/]",
            f"{row['difference_seconds'] * 1e6:+,.0f} µs",
            "-" if rate is None else f"{decimal(round(rate))}/s",
        )
    notes = {
        "ours": "a round's allreduce as it is run and metered: sums of int64 numbers",
        "library": "the library's own call on the same bytes; before either call ranks meet, which is not timed",
        "bus": "2 (n - 1) / n times the bytes over the seconds of ours",
        "measured": "the two in turn; of each repeat the slowest rank, of the repeats the median",
        "machine": machine(result),
    }
    if ranks == 1:
        alone = (
            "one process has nobody to add up with: this is what the simulator's own code costs; start it with mpiexec or torchrun"
        )
        notes = {"alone": alone, "ours": notes["ours"], "machine": notes["machine"]}
    repeats = {f"{row['bytes']:,} bytes": row["ours_quartiles"] for row in result["sizes"]} if ranks > 1 else {}
    page(console, title, table, [], notes, repeats)
