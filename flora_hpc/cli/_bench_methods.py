"""`flora-hpc bench methods`: seconds and memory of methods, against full fine-tuning."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal

from flora_hpc.cli._args import AsJson, Device
from flora_hpc.cli._bench_page import columns, machine, page, print_result, progress_printer
from flora_hpc.errors import UserError
from flora_hpc.records.views import seconds

PAPER = {("flora", "fedfft"): " (the FLoRA paper: up to 34.72 and 2.47)"}


def methods(
    model: Annotated[str, typer.Option(help="'flora-tiny' or a name of open_clip.list_models(), with random weights")] = "ViT-B-32",
    classes: Annotated[int, typer.Option(min=1, help="captions of the task")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="images of a client step")] = 128,
    names: Annotated[
        str, typer.Option("--methods", metavar="A,B,...", help="measured in this order; each is compared with the last")
    ] = "flora,fedfft",
    clients: Annotated[
        int | None,
        typer.Option(min=1, help="clients trained at once; by default as many as in a run with many", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="steps of each client in a repeat")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="timed repeats, of which the median counts")] = 3,
    device: Annotated[Device, typer.Option(help="auto takes a GPU when there is one")] = Device.auto,
    as_json: AsJson = False,
) -> None:
    """Compare methods: seconds per client step and peak memory.

    On two cores the default takes some minutes and 10 GB, nearly all of both for fedfft.
    """
    method_names = [name.strip() for name in names.split(",") if name.strip()]
    if not method_names:
        raise UserError("--methods: names no method; give for example --methods flora,fedfft")

    from flora_hpc.bench import methods as part  # torch and open_clip take seconds to import
    from flora_hpc.versions import versions

    part.check(model, method_names, device.value)
    results, progress = {}, progress_printer()
    with part.weights_file(model) as file:
        for number, name in enumerate(method_names, 1):
            progress(f"measuring {name} ({number} of {len(method_names)}): one step, then {repeats} x {steps}")
            task = part.Task(name, model, classes, batch_size, clients, steps, repeats, device.value, file)
            results[name] = part.measure_alone(task)
    last = results[method_names[-1]]
    result = {
        "model": model,
        "classes": classes,
        "batch_size": batch_size,
        "steps": steps,
        "repeats": repeats,
        "precision": "fp32",
        "device": last.device,
        "processor": part.processor(),
        "num_threads": last.num_threads,
        "versions": versions(),
        "methods": {name: asdict(of_method) for name, of_method in results.items()},
        "against": method_names[-1],
        "ratios": part.ratios(results),
    }
    print_result(result, as_json, show)


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the measurement as a table, the ratios, and the meaning of the numbers."""
    title = f"{result['model']}, {result['classes']:,} classes, {result['batch_size']:,} images a step, {result['precision']}"
    table = columns(["method"], ["trained\nnumbers", "payload", "clients\nat once", "time per\nclient step", "peak\nmemory"])
    for name, row in result["methods"].items():
        step = row["seconds_per_client_step"]
        time = seconds(step) if step < 60 else f"{step:,.0f} s"  # minutes would hide the ratio
        sizes = decimal(row["payload_bytes"]), f"{row['clients_at_once']}", time, decimal(row["peak_memory_bytes"])
        table.add_row(name, f"{row['num_params']:,}", *sizes)
    lines = []
    libraries = max(row["resident_before_bytes"] for row in result["methods"].values())
    for name, ratio in result["ratios"].items():
        against = result["against"]
        text = f"{times(ratio['time'])} time per client step, {times(ratio['memory'])} peak memory"
        on_top = f"; {times(ratio['memory_above_libraries'])} memory on top of the libraries" if libraries else ""
        lines.append(f"[bold]{name}[/] against {against}: [bold]{text}[/]{PAPER.get((name, against), '')}{on_top}")

    whose = f"the method's whole process, of which {decimal(libraries)} are libraries" if libraries else "tensors on the GPU"
    cached = [name for name, row in result["methods"].items() if row["sees"] == "features"]
    features = f"image features of {', '.join(cached)}, made once for all rounds (in the peak, not in a step); " if cached else ""
    notes = {
        "measured": f"local training as in a run: a client's share of the time of its group, median of {result['repeats']} x "
        f"{result['steps']} steps after one to warm up; peak memory of {whose}",
        "not measured": f"{features}aggregation, communication, accuracy: weights and images are random",
        "machine": machine(result),
    }
    page(console, title, table, lines, notes, {name: row["repeat_seconds"] for name, row in result["methods"].items()})


def times(ratio: float) -> str:
    """512.3 -> '512 times less', 0.5 -> '2 times more', 0.999 -> 'the same'."""
    size = max(ratio, 1 / ratio)
    if size < 1.005:
        return "the same"
    return f"{f'{size:,.0f}' if size >= 100 else f'{size:.3g}'} times {'less' if ratio >= 1 else 'more'}"
