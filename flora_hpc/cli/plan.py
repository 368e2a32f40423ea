"""`flora-hpc plan`: clients, ranks, payload and memory before anything runs; needs no GPU, no MPI, no weights."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from flora_hpc import configfile
from flora_hpc.cli._args import ConfigFile, Overrides


def towers(model: Any, fed: Any) -> list[tuple[int, int, int]]:
    """Positions that a client computes in a step, width and number of blocks, of each tower, as far as they can be read off."""
    shapes = []
    positions = (fed.method.text_positions, fed.client.batch_size * fed.method.image_positions)
    for rows, tower in zip(positions, (getattr(model, "text", model), model.visual), strict=True):
        blocks = getattr(getattr(tower, "transformer", None), "resblocks", ())
        shapes.append((rows, tower.transformer.width, len(blocks)) if len(blocks) else (rows, 768, 12))
    return shapes


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(min=1, help="plan for this many ranks")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs per node, which ranks take in turn")] = 0,
) -> None:
    """Show what a run would do: clients to ranks to devices, payload and memory sizes."""
    resolved, notes = configfile.load(config, overrides)
    for note in notes:
        print(f"note: {note}")

    import torch

    from flora_hpc import cohort, simulation
    from flora_hpc.round import cost

    dataset, clip, fed = simulation.prepare(resolved, torch.device("meta"))
    clients = cohort.sample(resolved.cohort, fed.shards.num_clients, resolved.seed, 1)
    sizes = fed.shards.sizes(clients)
    groups = cohort.make_groups(clients, sizes, fed.group_size)
    costs = [cost(fed, group) for group in groups]
    frozen = sum(p.numel() * p.element_size() for p in clip.model.parameters())
    num_images = len(dataset.train.labels) + len(dataset.test.labels)
    feature_bytes = 4 * clip.model.visual.output_dim * num_images if fed.method.sees == "features" else 0
    # of a group: trained numbers, gradients and two moments, besides the adapter itself and its exact sum; what blocks keep for the
    # backward pass, about twenty rows of a tower's width for each position
    kept = 4 * fed.group_size * fed.method.payload_bytes + 5 * fed.method.payload_bytes
    kept += fed.group_size * 4 * 20 * sum(rows * width * depth for rows, width, depth in towers(clip.model, fed))

    table = Table(title=f"plan of {Path(config).name}", title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("model", f"{clip.name}, {sum(p.numel() for p in clip.model.parameters()):,} numbers, {decimal(frozen)}")
    table.add_row("method", f"{resolved.method.name}, {fed.method.num_params:,} trained numbers per client")
    table.add_row("computed", fed.method.how)
    table.add_row("payload", f"{fed.method.payload_bytes:,} bytes per update")
    table.add_row("data", f"{dataset.name}: {len(dataset.train.labels):,} training and {len(dataset.test.labels):,} test images")
    table.add_row("captions", f"{len(dataset.captions)}, such as '{dataset.captions[0]}'")
    spread = f"{sizes.min():,} to {sizes.max():,} examples (median {int(np.median(sizes)):,})"
    table.add_row("clients", f"{len(clients):,} of {fed.shards.num_clients:,} in a round, {spread}")
    table.add_row("groups", f"{len(groups):,} of up to {fed.group_size} clients in one batch of tensors")
    held = fed.method.holds(clients) if fed.method.holds else None
    sent = int(fed.method.bytes_of(held, len(clients)).sum())
    table.add_row("traffic", f"{decimal(sent)} up and as much down, a round, in a federation")
    wire = 8 * (2 * fed.method.num_params + 1)
    table.add_row("allreduce", f"{decimal(wire)} per rank and round (exact sums: two 8-byte integers a number)")
    table.add_row("memory", f"per rank about {decimal(frozen + feature_bytes + kept)} of tensors: weights {decimal(frozen)}, "
                  f"features {decimal(feature_bytes)}, a group in training {decimal(kept)}; libraries: 1 GB more")  # fmt: skip
    console = Console()
    console.print(table)

    shares = Table(title=f"round 1 on {ranks} rank{'s' * (ranks > 1)}", title_justify="left")
    for heading in ("rank", "device", "groups", "clients", "client steps", "share"):
        shares.add_column(heading, justify="right")
    for rank, mine in enumerate(cohort.assign(costs, ranks)):
        steps = sum(costs[g] for g in mine)
        device = f"cuda:{rank % gpus}" if gpus else "cpu"
        count = sum(len(groups[g]) for g in mine)
        shares.add_row(str(rank), device, str(len(mine)), f"{count:,}", f"{steps:,}", f"{steps / sum(costs):.1%}")
    console.print(shares)
