"""What the algorithm of a run takes beyond local training: bytes that cross the network, and rows of clients on the ranks."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from rich.filesize import decimal

from flora_hpc import lowrank, products, productsums, rows, stacks
from flora_hpc.data.images import Ints
from flora_hpc.errors import UserError
from flora_hpc.setup import Setup

ID_BYTES = 8  # of a client's number, which is sent before its row
COPIES = 5  # of the memories of a rank's clients at the peak of a round: borrowed, changed, and given back (measured: 4.3)


class Traffic(NamedTuple):
    """Bytes of one round."""

    up: Ints  # (num_clients,) int64, sent by each client
    down: Ints  # (num_clients,) int64, received by each client
    allreduce: int  # of the exact sums, given by each rank
    products: int  # of these, the exact sums of products of low-rank adapters


class Remembered(NamedTuple):
    """Forecast of what clients remember from one round to the next; bytes are upper bounds."""

    row_bytes: Mapping[str, int]  # of one client, by what it remembers
    most_clients: int  # that remember something at the end of the run
    total_bytes: int  # of their rows, on all ranks together
    memory_bytes: int  # of a rank: rows in memory at the end of the run, and the copies of a round
    spilled_bytes: int  # of a rank: rows in a temporary file at the end of the run
    exchanged_bytes: int  # that ranks send each other in a round


def traffic(setup: Setup, clients: Ints, number: int) -> Traffic:
    """The bytes of round `number` with these clients (num_clients,)."""
    federation = setup.federation
    sent_bytes = 4 * federation.sent_numbers(setup.method, clients, number)
    encoded_bytes = federation.encoded_bytes(number)
    up = sent_bytes if encoded_bytes is None else np.full_like(sent_bytes, encoded_bytes)
    if federation.combine.by_rank is not None:
        roles = federation.roles_in(number)
        up[:] = lowrank.most_sent_bytes(lowrank.places(setup.method, roles), len(roles.sent), federation.combine.by_rank)
    widths = federation.channels(number).values()
    summed = 0 if stacked_layers(setup, number) else productsums.num_bytes(summed_layers(setup, number))
    return Traffic(
        up=up + federation.extra_bytes(number),
        down=4 * federation.received_numbers(setup.method, clients, number) + federation.message_bytes(number),
        allreduce=8 * (sum(2 * width + 1 for width in widths) + 1) + summed,
        products=summed,
    )


def summed_layers(setup: Setup, number: int) -> tuple[lowrank.Place, ...]:
    """The layers whose products B A are summed over clients in round `number`."""
    return lowrank.places(setup.method, setup.federation.roles_in(number)) if setup.sums_products else ()


def stacked_layers(setup: Setup, number: int) -> tuple[lowrank.Place, ...]:
    """The same where the products are summed by stacks of all clients' factors; none where by exact sums."""
    layers = summed_layers(setup, number)
    return layers if products.stacks_are_smaller(layers, setup.num_participants) else ()


def factors(setup: Setup, groups: Sequence[Sequence[Ints]]) -> stacks.Sizes | None:
    """What stacks of factors take in round 1, where ranks train `groups`; None without such stacks."""
    layers = stacked_layers(setup, 1)
    if not layers:
        return None
    of_ranks = [sum(map(len, of_rank)) for of_rank in groups]
    is_dynamic = setup.cohort.assignment == "dynamic" and len(groups) > 1
    local = (0, setup.num_participants) if is_dynamic else (min(of_ranks), max(of_ranks))
    return stacks.sizes(layers, setup.num_participants, local, len(groups))


def remembered(setup: Setup, groups: Sequence[Sequence[Ints]], room_bytes: int) -> Remembered | None:
    """Forecast of the memories of a run whose ranks train `groups` in a round; None where clients remember nothing.

    A rank may keep `room_bytes` of rows in memory.
    """
    row_bytes = bytes_of_row(setup)
    if not row_bytes:
        return None
    row, num_ranks = sum(row_bytes.values()), len(groups)
    most_clients = min(setup.holdings.num_clients, setup.rounds * setup.num_participants)
    home_bytes = -(-most_clients // num_ranks) * row
    num_moved = sum(int((group % num_ranks != rank).sum()) for rank, of_rank in enumerate(groups) for group in of_rank)
    borrowed = (num_ranks - 1) * setup.num_participants if setup.cohort.assignment == "dynamic" else num_moved
    return Remembered(
        row_bytes=row_bytes,
        most_clients=most_clients,
        total_bytes=most_clients * row,
        memory_bytes=min(home_bytes, room_bytes) + COPIES * row * clients_of_rank(setup, num_ranks),
        spilled_bytes=max(0, home_bytes - room_bytes),
        exchanged_bytes=borrowed * (2 * ID_BYTES + row) + num_moved * (ID_BYTES + row),
    )


def bytes_of_row(setup: Setup) -> dict[str, int]:
    """Bytes that one client remembers, by what it remembers."""
    sizes: dict[str, int] = {}
    for name, width in setup.federation.memory_widths(setup.client).items():
        label = "optimizer" if name.startswith("optimizer.") else name.rpartition(".")[2]
        sizes[label] = sizes.get(label, 0) + 4 * width
    return sizes


def clients_of_rank(setup: Setup, num_ranks: int) -> int:
    """How many clients a rank has rows of in a round: its share, or with dynamic assignment any client of the round."""
    is_dynamic = setup.cohort.assignment == "dynamic"
    return setup.num_participants if is_dynamic else -(-setup.num_participants // num_ranks)


def refuse_large_memories(setup: Setup, num_ranks: int, room_bytes: int) -> None:
    """Raise UserError where the memories that a rank borrows and gives back in a round do not fit into `room_bytes`."""
    row_bytes = bytes_of_row(setup)
    row, num_clients = sum(row_bytes.values()), clients_of_rank(setup, num_ranks)
    if COPIES * row * num_clients <= room_bytes:
        return
    by_optimizer = 2 * row_bytes.get("optimizer", 0) > row
    cure = "set client.optimizer_state: reset" if by_optimizer else "take an algorithm without memories"
    whose = "client.optimizer_state: keep" if by_optimizer else f"algorithm: {setup.federation.name}"
    raise UserError(
        f"{whose}: a rank borrows and gives back the memories of {num_clients:,} clients in a round, "
        f"{COPIES} times {decimal(row)} each and {decimal(COPIES * row * num_clients)} in all, "
        f"but has room for {decimal(room_bytes)}; {cures(setup, num_ranks, cure)}"
    )


def cures(setup: Setup, num_ranks: int, last: str) -> str:
    """What makes the rows of a rank's clients fewer, or else `last`."""
    if setup.cohort.assignment == "dynamic" and num_ranks > 1:
        return f"set cohort.assignment: balanced, or {last}"
    return f"take more ranks or a smaller cohort.size, or {last}" if clients_of_rank(setup, num_ranks) > 1 else last


def updates_bytes(setup: Setup, num_ranks: int) -> int:
    """Bytes that a rank needs to combine the updates of a round by a rule that compares them; 0 for exact sums."""
    federation = setup.federation
    if federation.rule is None:
        return 0
    return rows.num_bytes(federation.payload_bytes // 4, federation.rule, *rows_of_rank(setup, num_ranks), num_ranks)


def exchange(setup: Setup, num_ranks: int) -> rows.Exchange | None:
    """What a rule that compares updates makes the ranks send each other in a round; None for exact sums, and for one rank."""
    federation = setup.federation
    if federation.rule is None or num_ranks == 1:
        return None
    return rows.exchange(federation.payload_bytes // 4, federation.rule, *rows_of_rank(setup, num_ranks), num_ranks)


def rows_of_rank(setup: Setup, num_ranks: int) -> tuple[int, int]:
    """The rows of a round that a rule compares, and at most how many of them a rank has before their exchange."""
    own = int(setup.federation.rule is not None and setup.federation.rule.needs_server)
    return setup.num_participants + own, clients_of_rank(setup, num_ranks) + own


def refuse_large_updates(setup: Setup, num_ranks: int, room_bytes: int) -> None:
    """Raise UserError where the updates that a rank has in memory for a rule do not fit into `room_bytes`."""
    needed = updates_bytes(setup, num_ranks)
    if needed <= room_bytes:
        return
    raise UserError(
        f"algorithm: {setup.federation.name}: its rule compares all updates, so that a rank has those of its "
        f"{clients_of_rank(setup, num_ranks):,} clients of a round in memory, {decimal(setup.federation.payload_bytes)} each, and "
        f"a block of all {setup.num_participants:,} clients, {decimal(needed)} together, but has room for {decimal(room_bytes)}; "
        f"{cures(setup, num_ranks, 'take a combine part of sums')}"
    )
