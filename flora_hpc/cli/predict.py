"""`flora-hpc predict`: what a round, and a whole run, would take on other nodes."""

import json
import os
import socket
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal

from flora_hpc import configfile, extras
from flora_hpc.bench import quiet
from flora_hpc.bench.head import head
from flora_hpc.cli import _pages
from flora_hpc.cli._args import AsJson, ConfigFile, Overrides, Plugins, use_plugins
from flora_hpc.cli._bench_page import BEWARE, columns, progress_printer, remarks
from flora_hpc.errors import UserError, reason
from flora_hpc.records.views import count, seconds

if TYPE_CHECKING:
    from flora_hpc.bench.predict.point import Model
    from flora_hpc.config import Config
    from flora_hpc.shared import Shared


class Export(StrEnum):
    """A format for other programs."""

    extrap = "extrap"


From = Annotated[
    list[Path] | None,
    typer.Option(
        "--from",
        metavar="RUN",
        help="a run directory, its run.h5, or a result.json of bench cluster; may be repeated; without it, predict measures here",
        show_default=False,
    ),
]


def predict(
    config: ConfigFile,
    overrides: Overrides = None,
    plugin: Plugins = None,
    nodes: Annotated[int, typer.Option(min=1, help="nodes")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="GPUs of each node")] = 0,
    ranks_per_node: Annotated[
        int | None, typer.Option(min=1, help="ranks of a node; by default one for each GPU, or one", show_default=False)
    ] = None,
    cores_per_node: Annotated[
        int | None,
        typer.Option(min=1, help="cores of a node, where it has fewer than its ranks have threads", show_default=False),
    ] = None,
    runs: From = None,
    export: Annotated[
        Export | None, typer.Option(help="print the measured seconds for Extra-P instead: JSON lines", show_default=False)
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", help="also write a page: 1 to 1,024 nodes, 10 to a million clients a round", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict a round and a run on other nodes, from runs that were measured."""
    use_plugins(plugin)
    resolved, notes = configfile.load(config, overrides)
    say = progress_printer()
    for note in notes:
        say(f"note: {note}")
    extras.need("predict", "scipy")
    if export is not None and (page is not None or as_json):
        raise UserError("--export: prints lines for another program alone; leave --page and --json out")
    if page is not None:
        extras.need("--page", "matplotlib", "jinja2")
        _pages.check(page, None, "--page")

    from flora_hpc.bench.predict import outcome, point  # torch and open_clip take seconds to import
    from flora_hpc.shared import Shared

    shared = Shared()
    target = point.Target(nodes, ranks_per_node or max(1, gpus_per_node), gpus_per_node, cores_per_node)
    busy = [] if runs else quiet.loaded([{"load": quiet.load(), "cores": os.cpu_count() or 1, "host": socket.gethostname()}])
    model = model_of(resolved, runs, shared, gpus_per_node > 0)
    if export is not None:
        for line in outcome.extrap(model.samples):
            print(line)
        return
    result = outcome.predict(model, resolved, target, shared)
    result["warnings"] = [*busy, *result["warnings"]]
    if page is not None:
        write_page(page, outcome.grid(model, resolved, target, shared, say), result, Path(config).name)
    if as_json:
        json.dump(head("predict") | {"config": str(config)} | result, sys.stdout)
        print()
    else:
        show(Console(highlight=False), result, Path(config).name)


def model_of(config: "Config", runs: list[Path] | None, shared: "Shared", on_gpu: bool) -> "Model":
    """The terms from these runs, or from short runs that are played now."""
    from flora_hpc.bench.predict import measure, point, samples

    if runs:
        return point.model(samples.read(runs, config, shared, on_gpu))
    return point.model(measure.measure(config, shared, on_gpu, progress_printer()))


def write_page(page: Path, grid: dict[str, Any], result: dict[str, Any], name: str) -> None:
    """Write the page of predictions. Raises UserError where it cannot be written."""
    from flora_hpc.report import predict_page

    try:
        page.write_text(predict_page.make(grid, result, name), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--page {page}: cannot be written ({reason(error)}); choose another place") from None


def show(console: Console, result: dict[str, Any], name: str) -> None:
    """Print the terms of a round as a table, and the run below it."""
    where = f"{count(result['nodes'], 'node')}, {count(result['ranks'], 'rank')}"
    title = f"{name} on {where}: {count(result['clients'], 'client')} a round, in {count(result['groups'], 'group')}"
    console.print(title, style="italic", markup=False)
    table = columns(["term"], ["seconds", "95 % band", "share"])
    for term, interval in sorted(result["terms"].items(), key=lambda item: -item[1]["value"]):
        table.add_row(term, seconds(interval["value"]), band(interval), f"{interval['share']:.1%}")
    whole = result["round_seconds"]
    table.add_row("a round", seconds(whole["value"]), band(whole), "predicted", style="bold")
    if whole["measured"] is not None:
        table.add_row("", seconds(whole["measured"]), "", "measured")
    console.print(table)
    console.print(remarks(facts(result)))


def facts(result: dict[str, Any]) -> dict[str, str]:
    """What else is known about the run: name -> text."""
    rate, total, up_to = result["client_updates_per_second"], result["total_seconds"], result["measured_up_to"]
    hours = f"{result['node_hours']['value']:.3g} node hours"
    if result["gpus_per_node"]:
        hours += f", {result['gpu_hours']['value']:.3g} GPU hours"
    start_up = seconds(result["start_up_seconds"]["value"])
    warnings = {BEWARE: "\n".join(result["warnings"])} if result["warnings"] else {}
    return {
        "most of it": result["dominating"],
        "speed": f"{rate['value']:,.0f} client updates a second ({rate['low']:,.0f} to {rate['high']:,.0f}), predicted",
        "run": f"{seconds(total['value'])} ({band(total)}) for {count(result['rounds'], 'round')}, predicted, "
        f"{start_up} of them to start, measured; {hours}",
        "log": f"about {decimal(result['log_bytes'])}, predicted",
        "memory": f"about {decimal(result['memory_bytes_of_rank'])} a rank, as `flora-hpc plan` says",
        "measured": f"up to {count(up_to['ranks'], 'rank')} and {count(up_to['clients'], 'client')} a round",
        "from": "\n".join(result["runs"]),
        **warnings,
    }


def band(interval: dict[str, Any]) -> str:
    """An interval of seconds as text."""
    return f"{seconds(interval['low'])} to {seconds(interval['high'])}"
