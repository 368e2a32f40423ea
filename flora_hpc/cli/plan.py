"""`flora-hpc plan`: clients, ranks, payload and memory before anything runs; needs no GPU and no MPI, and looks at no values."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from flora_hpc import configfile
from flora_hpc.cli._args import ConfigFile, Overrides, Plugins, use_plugins
from flora_hpc.config import Config
from flora_hpc.data.images import Ints

ASSIGNMENTS = {
    "static": "static: {}s go to ranks in turn",
    "balanced": "balanced: the costliest {} first, each to the rank with the least so far",
    "dynamic": "dynamic: an idle rank takes the costliest group that is left; below, what ranks of the same speed take",
}
LIBRARY_BYTES = 65 * 10**7  # Python, PyTorch and open_clip on a CPU, measured after a product
UNSEEN_GPU_BYTES = 16 * 10**9  # memory of a GPU that is planned for and not here


def memory(
    clip: Any, setup: Any, load: Any, group_bytes: int, num_images: int, kept_clients: int, at_once: int, num_bytes: int = 4
) -> dict[str, int]:
    """About how many bytes a rank needs: what stays, and the larger of two peaks, which do not meet.

    `load` is what a client takes, `group_bytes` the largest group; `kept_clients` are those whose optimizers stay with the rank; a
    number of a feature has `num_bytes`, and images are encoded `at_once`.
    """
    import torch

    from flora_hpc import firststep
    from flora_hpc.clip.towers import num_image_positions
    from flora_hpc.groupsize import tower

    model, method = clip.model, setup.method
    lasting = {"weights": sum(p.numel() * p.element_size() for p in model.parameters())}
    # beside a group: the adapter, the mean update and an exact sum of 16 bytes a number
    peaks = {"training a group": group_bytes + 6 * method.payload_bytes}
    if method.sees == "features":
        values = method.unpack(torch.empty(1, method.num_params, device="meta"))
        lasting["features"] = num_bytes * method.classes(values, None).shape[-1] * num_images
        size = model.visual.image_size
        pixels = 3 * (size[0] * size[1] if isinstance(size, tuple) else size * size)
        # pixels of the images that are encoded at once, and of those that are read ahead; and what one layer makes of the former
        peaks["encoding images"] = 4 * at_once * (3 * pixels + 10 * num_image_positions(model) * tower(model.visual).width)
    if setup.by_jacobian:  # while ranks exchange its rows, they are there twice
        lasting["Jacobian"] = peaks["exchanging a Jacobian"] = firststep.num_bytes(method, True)
    if setup.client.optimizer_state == "keep":
        lasting["optimizers"] = kept_clients * load.state_bytes
    largest = max(peaks, key=lambda name: peaks[name])
    return lasting | {largest: peaks[largest], "libraries": LIBRARY_BYTES}


def room_for(gpus: int, ranks: int) -> Any:
    """Memory for a group: of this machine, or of a GPU like those here, which some of `ranks` may share."""
    import torch

    from flora_hpc.comm import devices

    sharing = -(-ranks // gpus) if gpus else 1
    if gpus and not torch.cuda.is_available():
        return devices.Room(UNSEEN_GPU_BYTES // 2 // sharing, gpu=True)
    return devices.room(torch.device("cuda" if gpus else "cpu"), sharing)


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    plugin: Plugins = None,
    ranks: Annotated[int, typer.Option(min=1, help="plan for this many ranks")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs per node, which ranks take in turn")] = 0,
) -> None:
    """Show what a run would do: clients to ranks to devices, payload and memory sizes."""
    use_plugins(plugin)
    resolved, notes = configfile.load(config, overrides)
    for note in notes:
        print(f"note: {note}")

    import torch

    from flora_hpc import cohort, experiment, firststep
    from flora_hpc.clip import precision
    from flora_hpc.clip.towers import images_at_once
    from flora_hpc.round import groups_of_ranks

    if not gpus:  # what another machine's GPUs can do is not known here
        precision.settle(resolved.model.precision, torch.device("cpu"))
        precision.settle(resolved.features.compute, torch.device("cpu"), "features.compute")
    room = room_for(gpus, ranks)
    built = experiment.build(resolved, torch.device("meta"), room)
    dataset, clip, setup = built.dataset, built.clip, built.setup
    clients = cohort.sample(resolved.cohort, setup.shards.num_clients, resolved.seed, 1)
    sizes = setup.shards.sizes(clients)
    groups = groups_of_ranks(setup, ranks, 1)
    num_groups, largest = sum(map(len, groups)), max(len(group) for mine in groups for group in mine)
    num_bytes = 2 if resolved.features.precision == "bf16" else 4
    choice, load = experiment.group_size(resolved, dataset, clip, setup.method, setup.shards, room)
    group_bytes = load.of_group(largest)
    at_once = images_at_once(clip.model, torch.device("cuda" if gpus else "cpu"))
    needed = memory(clip, setup, load, group_bytes, len(dataset.images), -(-len(clients) // ranks), at_once, num_bytes)

    bound = choice.bound if any(len(mine) > 1 for mine in groups) or ranks == 1 else "each rank trains its clients in one"
    if resolved.cohort.assignment == "dynamic" and largest < choice.clients:
        bound = "several for each rank, so that an idle one finds work"
    together = f"{num_groups:,} of up to {largest} clients in one batch of tensors, about {decimal(group_bytes)}"
    spread = f"{sizes.min():,} to {sizes.max():,} examples (median {int(np.median(sizes)):,})"
    rows = model_rows(resolved, clip, setup, needed["weights"]) | {
        "data": f"{dataset.name}: {len(dataset.train):,} training and {len(dataset.test):,} test images",
        "captions": f"{len(dataset.captions)}, such as '{dataset.captions[0]}'",
        "clients": f"{len(clients):,} of {setup.shards.num_clients:,} in a round, {spread}",
        "groups": f"{together}; {bound}",
        "first step": firststep.describe(setup.method, setup.by_jacobian),
        "assignment": ASSIGNMENTS[resolved.cohort.assignment].format("group" if setup.grouping.fixed else "client"),
    }
    console = Console()
    console.print(facts_table(f"plan of {Path(config).name}", rows | cost_rows(setup, clients, needed, ranks)))
    warnings = list(dataset.warnings)
    if group_bytes > room.num_bytes:
        warnings.append(too_large(group_bytes, room, largest))
    for sentence in warnings:
        console.print(f"warning: {sentence}", style="yellow", markup=False, soft_wrap=True)
    steps = -(-sizes // resolved.client.batch_size) * resolved.client.epochs
    console.print(shares_table(groups, dict(zip(clients.tolist(), steps.tolist(), strict=True)), gpus))


def model_rows(resolved: Config, clip: Any, setup: Any, weight_bytes: int) -> dict[str, str]:
    """What is trained of which model, and how large an update is."""
    from flora_hpc.clip import weights

    numbers = sum(p.numel() for p in clip.model.parameters())
    return {
        "model": f"{clip.name}, {numbers:,} numbers, {decimal(weight_bytes)}",
        "weights": weights.what_is_checked(weights.find(resolved.model)),
        "method": f"{resolved.method.name}, {setup.method.num_params:,} trained numbers per client",
        "computed": f"{setup.method.how}; {resolved.model.precision}",
        "payload": f"{setup.method.payload_bytes:,} bytes per update",
    }


def cost_rows(setup: Any, clients: Any, needed: dict[str, int], ranks: int) -> dict[str, str]:
    """Bytes that a round sends, and the memory that a rank needs."""
    from flora_hpc import firststep

    sent, wire = int(setup.method.bytes_of(clients).sum()), 8 * (2 * setup.method.num_params + 1)
    parts = ", ".join(f"{name} {decimal(size)}" for name, size in needed.items())
    rows = firststep.sent_bytes(setup.method, setup.by_jacobian, ranks)
    gathered = f"{decimal(rows)} a round (rows of a Jacobian: each rank sends its own to all others)"
    return {
        "traffic": f"{decimal(sent)} up and as much down, a round, in a federation",
        "allreduce": f"{decimal(wire)} per rank and round (exact sums: two 8-byte integers a number)",
        **({"allgather": gathered} if rows else {}),
        "memory": f"per rank about {decimal(sum(needed.values()))}: {parts}",
    }


def facts_table(title: str, rows: dict[str, str]) -> Table:
    """One row a fact. Names, paths and captions are the user's: brackets in them are no markup."""
    table = Table(title=Text(title, "table.title"), title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def too_large(group_bytes: int, room: Any, clients: int) -> str:
    """A warning that a group of `clients` takes more memory than there is."""
    whose = "of its part of a GPU's memory" if room.gpu else "of this machine's memory for each core"
    cure = "lower client.group_size or" if clients > 1 else "put fewer ranks on a node, or lower"
    return f"a group takes about {decimal(group_bytes)}, and half {whose} is {decimal(room.num_bytes)}; {cure} client.batch_size"


def shares_table(shares: Sequence[Sequence[Ints]], steps_of: Mapping[int, int], gpus: int) -> Table:
    """One row a rank: its device, and what it does of round 1. `shares` are each rank's groups, `steps_of` each client's steps."""
    table = Table(title=f"round 1 on {len(shares)} rank{'s' * (len(shares) > 1)}", title_justify="left")
    for heading in ("rank", "device", "groups", "clients", "client steps", "share"):
        table.add_column(heading, justify="right")
    for rank, groups in enumerate(shares):
        mine = [client for group in groups for client in group.tolist()]
        steps = sum(steps_of[client] for client in mine)
        device = f"cuda:{rank % gpus}" if gpus else "cpu"
        share = f"{steps / sum(steps_of.values()):.1%}"
        table.add_row(str(rank), device, str(len(groups)), f"{len(mine):,}", f"{steps:,}", share)
    return table
