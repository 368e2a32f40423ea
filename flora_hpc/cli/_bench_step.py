"""`flora-hpc bench step`: the plain step against the fast one."""

from enum import StrEnum
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from flora_hpc.cli._args import AsJson, Device
from flora_hpc.cli._bench_page import machine, page, print_result, progress_printer
from flora_hpc.records.views import seconds

PARTS = {  # of the fast step
    "products": "matrix products",
    "attention": "scores, softmax and mix",
    "other": "operators: norms, sums, copies, loss, Adam",
    "between": "operators: Python, autograd, the profiler",
}
SIDES = {"plain": "plain", "fast": "step"}  # side -> prefix of its keys


class Precision(StrEnum):
    """Number formats of the fast side."""

    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"


def step(
    model: Annotated[str, typer.Option(help="'flora-tiny' or a name of open_clip.list_models(), with random weights")] = "ViT-B-32",
    classes: Annotated[int, typer.Option(min=1, help="captions of the task")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="images of a client step")] = 128,
    method: Annotated[str, typer.Option(help="flora or fedprompt")] = "flora",
    precision: Annotated[
        Precision, typer.Option(help="number format of the fast side's frozen weights; the plain side is fp32")
    ] = Precision.fp32,
    clients: Annotated[
        int | None,
        typer.Option(min=1, help="clients trained at once; by default as many as in a run with many", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="steps of each client in a repeat of the fast side")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="timed repeats, of which the median counts")] = 3,
    device: Annotated[Device, typer.Option(help="auto takes a GPU when there is one")] = Device.auto,
    as_json: AsJson = False,
) -> None:
    """Compare the plain training step with the fast one: time, gradients, share of the peak.

    On two cores the default takes some minutes, nearly all of them for plain steps.
    """
    from flora_hpc.bench import step as part  # torch and open_clip take seconds to import

    task = part.Task(model, method, classes, batch_size, precision.value, clients, steps, repeats, device.value)
    part.check(task)
    result = part.measure(task, progress_printer())
    print_result(result, as_json, show)


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the measurement as a table, and the meaning of the numbers."""
    task = f"{result['classes']:,} classes, {result['batch_size']:,} images a step, {result['precision']}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(style="dim")
    plain, fast = result["plain_seconds"], result["step_seconds"]
    table.add_row("plain step", seconds(plain), "one client, open_clip and peft alone")
    table.add_row("fast step", seconds(fast), f"a client's share, {result['clients_per_step']} at once")
    for name, meaning in PARTS.items():
        share = result["step_parts_seconds"][name] / result["profiled_step_seconds"]
        table.add_row(f"  {name}", f"{share:.0%}", meaning)
    table.add_row("ratio", f"{plain / fast:,.1f}", "plain over fast")
    table.add_row("gradient error", f"{result['grad_rel_err']:.1e}", "length of the difference, over the gradient's")
    table.add_row("", f"{result['grad_largest_err']:.1e}", "largest difference, over the largest number")
    table.add_row("operations", f"{result['step_gflop']:,.3g} GFLOP", "that the fast step executes")
    table.add_row("peak", f"{result['peak_gflops']:,.0f} GFLOP/s", "of a large product, measured just now")
    table.add_row("share of the peak", f"{result['peak_fraction']:.0%}", "that the fast step reaches")
    slower = result["profiled_step_seconds"] / fast
    notes = {
        "measured": f"in turn in one process, medians of {result['repeats']} after one to warm up; the fast side starts from image "
        f"features, which a run computes once for all rounds; gradients of {result['gradients_compared']} clients, each with "
        "tensors of its own; operations of products and attention alone",
        "parts": f"by PyTorch's profiler, under which the fast step takes {slower:.2f} times as long",
        "machine": machine(result),
    }
    repeats = {side: result[f"{key}_repeat_seconds"] for side, key in SIDES.items()}
    page(console, f"{result['model']}, {result['method']}, {task}", table, [], notes, repeats)
