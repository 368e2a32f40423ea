"""`flora-hpc bench against`: whole rounds against a plain loop."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flora_hpc.cli._args import AsJson, OptionalConfig, Overrides, Plugins, use_plugins
from flora_hpc.cli._bench_page import columns, machine, page, print_result, progress_printer, read
from flora_hpc.comm import launch
from flora_hpc.records.views import seconds

DEFAULT = Path(__file__).parent.parent / "bench" / "against.yaml"
NAMES = {"ours": "rounds of a run", "plain": "plain loop"}


def against(
    config: OptionalConfig = None,
    overrides: Overrides = None,
    plugin: Plugins = None,
    rounds: Annotated[int, typer.Option(min=2, help="rounds of each side, of which the first warms up")] = 8,
    as_json: AsJson = False,
) -> None:
    """Measure rounds against the loop one writes with peft, cached features and cut captions."""
    use_plugins(plugin)
    progress = progress_printer()
    resolved = read(config or DEFAULT, [f"rounds={rounds}", *(overrides or [])], progress)
    from flora_hpc.bench import against as part  # torch and open_clip take seconds to import

    print_result(part.measure(resolved, launch.detect(), progress), as_json, show)


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the measurement as a table, and the meaning of the numbers."""
    title = f"{result['model']}, {result['method']}, {result['num_clients']:,} clients a round"
    table = columns(["side"], ["a round"])
    for name, value in result["round_seconds"].items():
        table.add_row(NAMES[name], seconds(value))
    notes = {
        "plain loop": "one client after the other: peft's LoRA, torch's optimizer, image features computed once, captions cut to "
        f"{result['caption_length']} tokens",
        "first step": f"of a run: {result['first_step']}",
        "measured": f"medians of {result['num_rounds']} rounds, in turn in one process; adapters are not tested",
        "same": f"after one round, the two updates are {result['update_difference']:.1e} of their length apart",
        "machine": machine(result),
    }
    page(console, title, table, [f"rounds are [bold]{result['ratio']:.2f}[/] times as fast"], notes)
