"""`flora-hpc bench cluster`: fixed work on 1, 2, 4, ... nodes: one number, a proof, and a page to hand over."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flora_hpc import configfile, extras, rundir
from flora_hpc.bench import quiet
from flora_hpc.bench.head import head
from flora_hpc.cli import _fom
from flora_hpc.cli._args import AsJson
from flora_hpc.cli._bench_page import BEWARE, columns, page, print_result, progress_printer
from flora_hpc.cli._job import job
from flora_hpc.comm import launch
from flora_hpc.comm.communicator import Communicator, send_to_all, together
from flora_hpc.errors import UserError, at_home
from flora_hpc.records.views import count, seconds

PAGE = "cluster.html"
LEAST = 1e-6  # share of a class


def cluster(
    class_: Annotated[str, typer.Option("--class", metavar="T|S|M|L|X|F", help="how much work: docs/benchmark.md lists them")],
    weak: Annotated[
        bool, typer.Option("--weak/--strong", help="work that grows with the nodes, or the same work on more of them")
    ] = False,
    fraction: Annotated[
        float, typer.Option(help="share of the class's clients, at most 1, for machines too small; the result says so")
    ] = 1.0,
    repeats: Annotated[int, typer.Option(min=5, help="rounds that count, after a warm-up")] = 5,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="directory of the result; by default runs/cluster-CLASS-<time>", show_default=False),
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, serial, mpi, gloo or nccl")] = "auto",
    fom: _fom.Fom = False,
    as_json: AsJson = False,
) -> None:
    """Benchmark a cluster: fixed work on 1, 2, 4, ... nodes in one job. Start it like a run: with srun, mpiexec or torchrun.

    Exit code 1: the result is invalid, and the last line names the rank or node that differed first.
    """
    load = quiet.load()  # before torch is imported, which is work
    from flora_hpc.bench.cluster import classes

    refuse_fraction(fraction)
    work = classes.Work(classes.find(class_), weak, fraction, repeats, configfile.comm_with(backend))
    me = launch.detect()
    folder = at_home(out, key="--out") if out is not None else rundir.new(f"cluster-{work.of.name}")
    with job(me, work.comm) as ranks:
        result = measure_and_write(work, ranks, me, folder, load)
        valid = send_to_all(ranks, str(result["valid"] if result else "").encode()) == b"True"
    if result is not None:
        if fom:
            _fom.show(_fom.of_cluster(result))
        else:
            print_result(result, as_json, show)
    if not valid:
        raise typer.Exit(1)


def refuse_fraction(fraction: float) -> None:
    """Raise UserError for a share of a class that is none."""
    if not LEAST <= fraction <= 1:
        limit = f"most 1, not {fraction:g}" if fraction > 1 else f"least {LEAST:g}, not {fraction:g}"
        raise UserError(f"--fraction: must be at {limit}")


def measure_and_write(work: Any, ranks: Communicator, me: launch.Launch, folder: Path, load: float | None) -> dict[str, Any] | None:
    """Measure, and write result.json and the page on rank 0, which gets the result."""
    from flora_hpc.bench.cluster import measure, result  # torch takes seconds to import

    progress = progress_printer(me)
    together(ranks, lambda: result.refuse_used(folder) if ranks.rank == 0 else None)
    body = measure.measure(work, ranks, me, folder, progress, load)

    def write() -> dict[str, Any] | None:
        if body is None:
            return None
        whole = head("cluster") | body
        result.write(folder, whole)
        write_page(folder, whole, progress)
        progress(f"{folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
        return whole

    return together(ranks, write)


def write_page(folder: Path, whole: dict[str, Any], progress: Callable[[str], None]) -> None:
    """Write the page to hand over, where the packages of pages are installed."""
    if not (extras.installed("matplotlib") and extras.installed("jinja2")):
        progress("no page: it needs matplotlib and Jinja2: pip install 'flora-hpc[report]'")
        return
    try:
        from flora_hpc.report import cluster_page

        (folder / PAGE).write_text(cluster_page.make(whole), encoding="utf-8")
    except Exception as error:  # a broken matplotlib, a full disk: the measurement counts, and is in result.json
        progress(f"no page: {type(error).__name__}: {error}")


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the number, the curve, and the checks."""
    of, unit = result["class"], result["unit"]
    share = "" if of["fraction"] == 1 else f", {of['fraction']:.4g} of its clients: a share, not comparable with the whole class"
    title = f"class {of['name']} (version {of['version']}), {of['scaling']} scaling{share}"
    headings = ["ranks", "clients", "a round", "updates\nper second", "efficiency", "95 %"]
    table = columns([], [*(["nodes"] if unit == "node" else []), *headings])
    for row in result["curve"]:
        rate, efficiency = row["client_updates_per_second"], row["efficiency"]
        table.add_row(
            *([f"{row['units']}"] if unit == "node" else []),
            f"{row['ranks']}",
            f"{row['clients']:,}",
            seconds(row["round_seconds"]["median"]),
            f"{rate['value']:,.0f}",
            f"{efficiency['value']:.1%}",
            f"{efficiency['low']:.0%} to {efficiency['high']:.0%}",
        )
    number = result["number"]
    lines = []
    if result["valid"]:
        lines.append(
            f"[bold green]VALID[/]  [bold]{number['value']:,.0f}[/] {number['unit']} "
            f"(95 %: {number['low']:,.0f} to {number['high']:,.0f})"
        )
    else:
        lines.append(f"[bold red]INVALID[/]  {result['culprit']}")
    notes = {("passed  " if check["passed"] else "FAILED  ") + check["name"]: check["text"] for check in result["checks"]}
    place = result["topology"]
    many = [count(place[f"num_{what}s"], what) for what in ("rank", "node")]
    notes["machine"] = f"{' on '.join(many)}, backend {place['backend']}, {launch.started(place['launcher'])}"
    if result["warnings"]:
        notes[BEWARE] = "\n".join(result["warnings"])
    page(console, title, table, lines, notes)
