"""`flora-hpc bench predict`: predictions held out, beside what is then measured."""

from typing import Annotated, Any

import typer
from rich.console import Console

from flora_hpc import extras
from flora_hpc.cli._args import AsJson
from flora_hpc.cli._bench_page import columns, page, print_result, progress_printer
from flora_hpc.cli._bench_scale import Launcher
from flora_hpc.records.views import count, seconds


def predict(
    repeats: Annotated[int, typer.Option(min=1, help="runs of each case, in turn; the quickest counts")] = 2,
    launcher: Annotated[
        Launcher | None, typer.Option(help="what starts the ranks; by default mpiexec where there is one", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict runs from smaller ones, and measure them: every pair, misses too. Starts the ranks itself."""
    extras.need("bench predict", "scipy")
    from flora_hpc.bench.predict import heldout  # torch and open_clip take seconds to import

    heldout.check()
    result = heldout.measure(heldout.TRAINING, heldout.HELD_OUT, repeats, launcher and launcher.value, progress_printer())
    print_result(result, as_json, show)


def show(console: Console, result: dict[str, Any]) -> None:
    """Print every pair."""
    table = columns(["predicted from smaller runs"], ["predicted", "95 % band", "measured", "error", "allowed", "band"])
    for each in result["pairs"]:
        band = f"{seconds(each['low_seconds'])} to {seconds(each['high_seconds'])}"
        numbers = (seconds(each["predicted_seconds"]), band, seconds(each["measured_seconds"]))
        limit, missed = f"{each['allowed']:.0%}{'' if each['within'] else ' missed'}", "holds" if each["in_band"] else "misses"
        table.add_row(each["case"], *numbers, f"{each['error']:+.1%}", limit, missed)
    number = len(result["pairs"])
    lines = [f"{result['within']} of {number} within what is allowed; the band holds {result['in_band']} of {number}"]
    load = "unknown" if result["load_before"] is None else f"{result['load_before']:.2f}"
    notes = {
        "measured": f"median round, without the two that warm up, of the quickest of {count(result['repeats'], 'run')}",
        "from": f"{len(result['training'])} runs of at most two ranks and 1,000 clients; of ViT-B-32, at most 40 clients",
        "load before": load,
        "machine": f"{result['processor']}, PyTorch {result['versions']['torch']}",
    }
    page(console, "predictions held out: seconds of a round", table, lines, notes)
