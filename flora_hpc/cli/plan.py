"""`flora-hpc plan`: clients, ranks, payload and memory before anything runs; needs no GPU and no MPI, and reads no values."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from flora_hpc import configfile
from flora_hpc.cli._args import ConfigFile, Overrides, Plugins, use_plugins
from flora_hpc.errors import UserError

if TYPE_CHECKING:
    from flora_hpc.forecast import Plan
    from flora_hpc.rows import Exchange
    from flora_hpc.setup import FirstTraffic
    from flora_hpc.stacks import Sizes

MOST_RANKS = 16  # with a row each
QUANTILES = {"least": 0.0, "a tenth up to": 0.1, "half up to": 0.5, "nine tenths up to": 0.9, "most": 1.0}


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    plugin: Plugins = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="plan for this many ranks, all on one node", show_default=False)] = None,
    nodes: Annotated[int, typer.Option(min=1, help="nodes, each with --ranks-per-node ranks")] = 1,
    ranks_per_node: Annotated[
        int | None, typer.Option(min=1, help="ranks of a node; by default one for each of --gpus", show_default=False)
    ] = None,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs per node, which ranks take in turn")] = 0,
) -> None:
    """Show what a run would do: clients to ranks to devices, payload and memory sizes."""
    if ranks is not None and (nodes > 1 or ranks_per_node is not None):
        raise UserError(f"--ranks {ranks}: are all on one node; give --nodes and --ranks-per-node, or --ranks alone")
    per_node = ranks if ranks is not None else ranks_per_node or max(1, gpus)
    use_plugins(plugin)
    resolved, notes = configfile.load(config, overrides)
    for note in notes:
        print(f"note: {note}")

    from flora_hpc import forecast  # torch and open_clip take seconds to import

    planned = forecast.plan(resolved, nodes * per_node, gpus, ranks_per_node=per_node)
    console = Console()
    console.print(facts_table(f"plan of {Path(config).name}", rows_of(planned)))
    for sentence in planned.warnings:
        console.print(f"warning: {sentence}", style="yellow", markup=False, soft_wrap=True)
    console.print(shares_table(planned, gpus, per_node) if planned.num_ranks <= MOST_RANKS else quantiles_table(planned))


def rows_of(plan: "Plan") -> dict[str, str]:
    """Model, method, data and the costs of a round: label -> text."""
    config, dataset, sizes, needed = plan.config, plan.dataset, plan.num_examples, plan.memory_bytes
    num_groups, largest = sum(map(len, plan.groups)), max(len(group) for groups in plan.groups for group in groups)
    together = f"{num_groups:,} of up to {largest} clients in one batch of tensors, about {decimal(plan.group_bytes)}"
    spread = f"{sizes.min():,} to {sizes.max():,} examples (median {int(np.median(sizes)):,})"
    owned = f", {plan.num_server_images:,} of them the server's," if plan.num_server_images else ""
    validation = f", {len(dataset.validation):,} validation" if len(dataset.validation) else ""
    gathered = f"{decimal(plan.allgather_bytes)} a round (rows of a Jacobian: each rank sends its own to all others)"
    products = f"; {decimal(plan.product_bytes)} of them for B A of each layer" if plan.product_bytes else ""
    return {
        "model": f"{plan.model}, {plan.model_numbers:,} numbers, {decimal(needed['weights'])}",
        "weights": plan.weights,
        "method": f"{config.method.name}, {plan.num_params:,} trained numbers per client",
        "computed": f"{plan.how}; {config.model.precision}",
        "algorithm": plan.algorithm,
        "payload": payload(plan),
        "data": f"{dataset.name}: {len(dataset.train):,} training{owned}{validation} and {len(dataset.test):,} test images",
        "captions": f"{len(dataset.captions)}, such as '{dataset.captions[0]}'",
        "clients": f"{len(plan.clients):,} of {plan.num_registered:,} in a round, {spread}",
        "groups": f"{together}; {plan.bound}",
        "first step": plan.first_step,
        "assignment": plan.assignment,
        "traffic": f"{decimal(plan.uplink_bytes)} up and {decimal(plan.downlink_bytes)} down, a round, in a federation",
        **({"first gradient": first_gradient(plan.first_traffic)} if plan.first_traffic else {}),
        "allreduce": f"{decimal(plan.allreduce_bytes)} per rank and round (exact sums: two 8-byte integers a number{products})",
        **({"allgather": gathered} if plan.allgather_bytes else {}),
        **({"updates": updates(plan.exchange)} if plan.exchange else {}),
        **({"factors": factors(plan.factors)} if plan.factors and plan.num_ranks > 1 else {}),
        **memories(plan),
        "memory": f"per rank about {decimal(sum(needed.values()))}: "
        + ", ".join(f"{name} {decimal(size)}" for name, size in needed.items()),
    }


def payload(plan: "Plan") -> str:
    """The bytes that a client sends and receives in a round, and its private share."""
    up, down = (
        f"{sizes.min():,}" + (f" to {sizes.max():,}" if sizes.max() > sizes.min() else "")
        for sizes in (plan.client_uplink_bytes, plan.client_downlink_bytes)
    )
    text = f"a client sends {up} bytes per update and receives {down}"
    if plan.period > 1:
        text += f", in round 1 of {plan.period} that send different tensors"
    if plan.drops_ranks:
        text += "; less once it has dropped ranks"
    if plan.merged:
        text += f"; from round 2 on also the change of merged weights, as {plan.merged}"
    if plan.num_private:
        text += f"; {plan.num_private:,} of its {plan.num_params:,} trained numbers are private"
    return text


def first_gradient(traffic: "FirstTraffic") -> str:
    """What clients send and receive once, before round 0."""
    return (
        f"before round 0, {traffic.num_senders:,} clients send {traffic.sent_bytes:,} bytes each, gradients of whole weights, and "
        f"all {traffic.num_receivers:,} registered clients receive {traffic.received_bytes:,} bytes each, which stay as they are"
    )


def factors(sizes: "Sizes") -> str:
    """What ranks send each other for the mean of B A of each layer."""
    return (
        f"a rank sends up to {decimal(sizes.sent)} to the others and receives up to {decimal(sizes.received)} a round: A and B of "
        "clients, to the rank that computes the mean of B A of the layer"
    )


def updates(exchange: "Exchange") -> str:
    """What ranks send each other for a rule that compares updates."""
    often = "once" if exchange.times == 1 else "twice"
    text = (
        f"a rank sends up to {decimal(exchange.sent)} to the others and receives up to {decimal(exchange.received)} a round: all "
        f"updates {often}, in {exchange.num_blocks} block{'s' * (exchange.num_blocks > 1)} of up to {decimal(exchange.block_bytes)}"
    )
    return text + (f"; rank 0 also receives {decimal(exchange.tables)} of their distances" if exchange.tables else "")


def memories(plan: "Plan") -> dict[str, str]:
    """What clients remember, and what that takes: label -> text."""
    remembered = plan.remembered
    if remembered is None:
        return {}
    row, total = sum(remembered.row_bytes.values()), remembered.total_bytes
    text = f"{decimal(row)} ({', '.join(remembered.row_bytes)}) of each client that has trained"
    if remembered.most_clients > len(plan.clients):
        text += f", so up to {decimal(len(plan.clients) * row)} more with each round"
    text += f"; {decimal(total)} after {plan.config.rounds:,} rounds, of at most {remembered.most_clients:,} clients"
    texts = {"memories": f"{text}, {decimal(-(-total // plan.num_ranks))} a rank"}
    if remembered.spilled_bytes:
        texts["spill"] = f"{decimal(remembered.spilled_bytes)} of a rank's memories in a temporary file of its node (TMPDIR)"
    if remembered.exchanged_bytes:
        texts["exchange"] = (
            f"up to {decimal(remembered.exchanged_bytes)} of memories a round, of clients that train on another rank"
        )
    return texts


def facts_table(title: str, rows: dict[str, str]) -> Table:
    """One row a fact. Names, paths and captions are the user's: brackets in them are no markup."""
    table = Table(title=Text(title, "table.title"), title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def quantiles_table(plan: "Plan") -> Table:
    """How the groups, clients and steps of round 1 are spread over many ranks."""
    steps_of = np.zeros(int(plan.clients.max()) + 1, np.int64)
    steps_of[plan.clients] = plan.num_steps
    clients = [np.concatenate([np.zeros(0, np.int64), *groups]) for groups in plan.groups]
    steps = np.array([steps_of[of_rank].sum() for of_rank in clients])
    columns = {
        "groups": np.array([len(groups) for groups in plan.groups]),
        "clients": np.array([len(of_rank) for of_rank in clients]),
        "client steps": steps,
    }
    busy = f"{int((steps > 0).sum()):,} of {plan.num_ranks:,} ranks have work"
    table = Table(title=f"round 1 on {plan.num_ranks:,} ranks; {busy}", title_justify="left")
    for heading in ("ranks", *columns):
        table.add_column(heading, justify="right")
    for label, level in QUANTILES.items():
        table.add_row(label, *(f"{np.quantile(values, level, method='nearest'):,}" for values in columns.values()))
    table.add_row("mean over most", *(f"{values.mean() / max(1, values.max()):.1%}" for values in columns.values()))
    return table


def shares_table(plan: "Plan", gpus: int, per_node: int) -> Table:
    """One row a rank: its device, and its share of round 1."""
    steps_of = dict(zip(plan.clients.tolist(), plan.num_steps.tolist(), strict=True))
    table = Table(title=f"round 1 on {plan.num_ranks} rank{'s' * (plan.num_ranks > 1)}", title_justify="left")
    for heading in ("rank", "device", "groups", "clients", "client steps", "share"):
        table.add_column(heading, justify="right")
    for rank, groups in enumerate(plan.groups):
        clients = [client for group in groups for client in group.tolist()]
        steps = sum(steps_of[client] for client in clients)
        device = f"cuda:{rank % per_node % gpus}" if gpus else "cpu"
        share = f"{steps / sum(steps_of.values()):.1%}"
        table.add_row(str(rank), device, str(len(groups)), f"{len(clients):,}", f"{steps:,}", share)
    return table
