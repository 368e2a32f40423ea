"""`flora-hpc bench study`: a study against the same runs one after the other."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal

from flora_hpc.cli._args import AsJson, Overrides
from flora_hpc.cli._bench_page import columns, page, print_result, progress_printer
from flora_hpc.cli._bench_scale import Launcher
from flora_hpc.records.views import seconds

DEFAULT = Path(__file__).parent.parent / "bench" / "study.yaml"


def study(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG KEY=VALUE,VALUE...]", help="as for `flora-hpc study`; by default a small grid", show_default=False
        ),
    ] = None,
    overrides: Overrides = None,
    seeds: Annotated[int | None, typer.Option(min=1, metavar="N", help="seeds of each setting", show_default=False)] = None,
    ranks: Annotated[int, typer.Option(min=1, metavar="N", help="ranks of the study, and of each lone run")] = 2,
    launcher: Annotated[
        Launcher | None, typer.Option(help="what starts them; by default mpiexec where there is one", show_default=False)
    ] = None,
    lone: Annotated[bool, typer.Option("--lone/--no-lone", help="also play each point as a run of its own")] = True,
    as_json: AsJson = False,
) -> None:
    """Compare a study with the same runs one after the other: wall time and bits. Starts the ranks itself."""
    from flora_hpc.bench import study as part

    part.check()
    arguments = [*(words or [str(DEFAULT)]), *(["--seeds", str(seeds)] if seeds else [])]
    arguments += [word for text in overrides or [] for word in ("-s", text)]
    print_result(part.measure(arguments, ranks, launcher and launcher.value, lone, progress_printer()), as_json, show)


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the measurement as a table, and the meaning of the numbers."""
    number, ranks = result["num_points"], f"{result['num_ranks']} rank{'s' * (result['num_ranks'] > 1)}"
    table = columns(["side"], ["wall time", "a point"])
    table.add_row("one study", seconds(result["study_seconds"]), seconds(result["study_seconds"] / number))
    lines = []
    if result["lone_seconds"]:
        table.add_row("runs one after the other", seconds(result["lone_seconds"]), seconds(result["lone_seconds"] / number))
        lines = [
            f"the study takes [bold]{result['ratio']:.2f}[/] of the time; {result['num_equal']} of {number} adapters are equal"
        ]
    notes = {
        "measured": f"whole commands, start-up included, once each, on {ranks}; the study plays a point on each rank",
        "besides": f"{seconds(result['other_seconds_a_point'])} of a rank for each point beside training: start, data, files",
        "memory": f"{decimal(result['peak_bytes'])}, the peak of the largest process",
        "machine": f"{result['processor']}, PyTorch {result['versions']['torch']}",
    }
    page(console, f"{number:,} points in {result['num_settings']:,} settings", table, lines, notes)
