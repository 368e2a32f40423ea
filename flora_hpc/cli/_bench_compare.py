"""`flora-hpc bench compare A.json B.json ...`: results of the cluster benchmark beside each other."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flora_hpc.cli._args import AsJson
from flora_hpc.cli._bench_page import columns, page, print_result

MOST = 60  # characters of a setting that is shown


def compare(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="result.json files, or their directories")],
    as_json: AsJson = False,
) -> None:
    """Compare results of `bench cluster` with the first one: ratios with 95 % intervals. Refuses unlike classes."""
    from flora_hpc.bench.cluster import compare as part
    from flora_hpc.bench.cluster import result

    print_result(part.compare([(str(path), result.read(path)) for path in results]), as_json, show)


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the ratios as a table, and what differs between the machines."""
    of = result["class"]
    table = columns(["result"], ["nodes", "ranks", "updates\nper second", "ratio", "95 %", "efficiency"])
    for row in result["results"]:
        ratio = row["ratio"]
        table.add_row(
            row["result"],
            f"{row['nodes']:,}",
            f"{row['ranks']:,}",
            f"{row['number']['value']:,.0f}",
            f"[bold]{ratio['value']:.3f}[/]",
            f"{ratio['low']:.3f} to {ratio['high']:.3f}",
            f"{row['efficiency']['value']:.1%}",
        )
    lines = [sentence(row) for row in result["results"][1:]]
    notes = {name: " | ".join(text[:MOST] or "-" for text in texts) for name, texts in result["unlike"].items()}
    title = f"class {of['name']} (version {of['version']}), {of['scaling']} scaling, {of['fraction']:.4g} of its clients"
    page(console, title, table, lines, notes or {"machine and program": "no difference that results record"})


def sentence(row: dict[str, Any]) -> str:
    """A sentence about one result: whether it differs from the first, and in which phase most."""
    if not row["differs"]:
        return f"{row['result']}: no difference from the first that the rounds would show"
    faster = "faster" if row["ratio"]["value"] > 1 else "slower"
    phases = row["phase_ratios"]
    phase = max(phases, key=lambda name: abs(phases[name] - 1)) if phases else ""
    where = f"; {phase} takes {phases[phase]:.2f} times as long" if phase else ""
    return f"{row['result']}: {faster}, {row['ratio']['value']:.3f} times the first{where}"
