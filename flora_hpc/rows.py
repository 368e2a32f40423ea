"""Rules that need the updates of all clients at once: the rows go to the ranks by blocks of columns.

    rank 0     rows of clients 4, 1        block 0 | block 1 | block 2 | block 3 | ...
    rank 1     rows of clients 0, 3, 2     block 0 | block 1 | block 2 | block 3 | ...
                  | exchange: block b of all rows goes to rank b % size, and these rows are put into the order of clients
    rank 0     clients 0 1 2 3 4 of blocks 0, 2, ...         rank 1   the same of blocks 1, 3, ...
                  | squared distances in each block; rank 0 adds them in the order of blocks, and sends the coefficients to all
                  | rule.columns(coefficients x rows), a chunk of columns at a time
    all ranks  the direction

Blocks and chunks do not depend on the number of ranks, every chunk is computed on one rank, and sums are float64 in a fixed order.
So the bits do not depend on the number of ranks, either. Beside its own clients' rows, a rank has one block of all rows in memory
at a time. The blocks are exchanged once for a rule by columns, and twice for a rule that begins with distances.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from flora_hpc.algorithms._algorithm import CombineRows
from flora_hpc.attackers import Attackers
from flora_hpc.clip import steady
from flora_hpc.comm.communicator import AgreedError, send_to_all
from flora_hpc.comm.meter import Meter
from flora_hpc.data.images import Ints

CHUNK = 1024  # columns that are float64 at once
MAX_BLOCKS = 64  # of all columns, so that rank 0 adds few tables of distances
SERVER = np.iinfo(np.int64).max  # stands for the server's own update among the clients, and comes last

Floats = npt.NDArray[np.float32]


@dataclass
class Updates:
    """The updates of this rank's clients in a round, as the server receives them."""

    width: int
    clients: list[Ints] = field(default_factory=list)
    rows: list[Floats] = field(default_factory=list)  # (num_clients, width) of each group

    def add(self, clients: Ints, rows: torch.Tensor) -> torch.Tensor:
        """Add the rows (num_clients, width) float32 of `clients`. Returns (num_clients,) bool: False for a row that is not finite.

        Such a row is left out.
        """
        finite = torch.isfinite(rows).all(1).cpu()
        self.clients.append(clients[finite.numpy()])
        self.rows.append(rows.cpu().numpy()[finite.numpy()])
        return finite

    def columns(self, columns: slice) -> Floats:
        """Some columns (num_clients, n) of all rows."""
        return np.concatenate([np.zeros((0, columns.stop - columns.start), np.float32), *(rows[:, columns] for rows in self.rows)])


class Cohort(NamedTuple):
    """The clients whose updates are combined."""

    order: Ints  # (num_rows,): places of their rows, as ranks have them
    clients: Ints  # (num_rows,) ascending, and SERVER where the server has an update of its own
    attackers: Attackers | None

    def attack(self, rows: torch.Tensor) -> None:
        """Let attackers that know the honest updates replace some columns of theirs, in rows (num_rows, width)."""
        if self.attackers is not None:
            num_clients = len(self.clients) - int(self.clients[-1] == SERVER)
            self.attackers.against(self.clients[:num_clients], rows[:num_clients])


def combine(comm: Meter, updates: Updates, rule: CombineRows, attackers: Attackers | None = None) -> torch.Tensor:
    """The direction (width,) float32 that `rule` computes from the updates of all ranks, at least one.

    `attackers` may send what depends on the updates of the others. All ranks call this together. Raises AgreedError, on every
    rank, where the rule needs the server's own update, and this was not finite.
    """
    own_clients = np.concatenate([np.zeros(0, np.int64), *updates.clients])
    clients = np.concatenate([np.frombuffer(data, np.int64) for data in comm.allgather(own_clients.tobytes())])
    cohort = Cohort(np.argsort(clients), np.sort(clients), attackers)
    if rule.needs_server and cohort.clients[-1] != SERVER:
        raise AgreedError("algorithm: the server's own update was not finite; lower client.lr")
    coefficients = None if rule.mix is None else mixtures(comm, updates, cohort, rule)
    parts = []
    for block in exchanged(comm, updates, cohort):
        with comm.phase("server"):
            parts += [rule.columns(mixed(coefficients, chunk), len(chunk)).float().numpy() for chunk in chunks(block)]
    own = np.concatenate([np.zeros(0, np.float32), *parts])
    gathered = [np.frombuffer(data, np.float32) for data in comm.allgather(own.tobytes())]
    direction, starts = np.empty(updates.width, np.float32), [0] * comm.size
    for number, columns in enumerate(blocks(updates.width)):
        owner, length = number % comm.size, columns.stop - columns.start
        direction[columns] = gathered[owner][starts[owner] : starts[owner] + length]
        starts[owner] += length
    return torch.from_numpy(direction)


def mixtures(comm: Meter, updates: Updates, cohort: Cohort, rule: CombineRows) -> torch.Tensor:
    """The coefficients (num_rows, num_clients) float64 of `rule`, which rank 0 computes from a table of all updates.

    The table has the distances between them, or what the rule measures.
    """
    assert rule.mix is not None
    num_points = len(cohort.clients) + 1
    total = torch.zeros(num_points * (num_points - 1) // 2 if rule.measure is None else 1, dtype=torch.float64)
    for block in exchanged(comm, updates, cohort):
        with comm.phase("server"):
            table = measured(rule, block).numpy() if block.shape[1] else np.zeros(0)
        tables = comm.gather(table.tobytes())
        for data in tables or []:  # by rank, which is the order of blocks
            if data:
                total = total + torch.from_numpy(np.frombuffer(data).copy())
    data = b""
    if comm.rank == 0:
        with comm.phase("server"):
            whole = symmetric(total, num_points) if rule.measure is None else total.view(-1, len(cohort.clients))
            data = rule.mix(whole).contiguous().numpy().tobytes()
    return torch.from_numpy(np.frombuffer(send_to_all(comm, data)).copy()).view(-1, len(cohort.clients))


def exchanged(comm: Meter, updates: Updates, cohort: Cohort) -> Iterator[torch.Tensor]:
    """This rank's blocks of all rows (num_clients, width of a block) float32, in the order of clients, each by one exchange.

    All ranks get equally many blocks; the last ones may have no columns.
    """
    all_blocks = blocks(updates.width)
    for first in range(0, len(all_blocks), comm.size):
        wave: Sequence[slice] = all_blocks[first : first + comm.size]
        parts = [updates.columns(block).tobytes() for block in wave] + [b""] * (comm.size - len(wave))
        parts = comm.exchange(parts)
        own = wave[comm.rank] if comm.rank < len(wave) else slice(0, 0)
        rows = np.frombuffer(b"".join(parts), np.float32).reshape(len(cohort.clients), own.stop - own.start)
        block = torch.from_numpy(rows[cohort.order])
        with comm.phase("server"):
            for start in range(0, block.shape[1], CHUNK):
                cohort.attack(block[:, start : start + CHUNK])
        yield block


def num_bytes(width: int, rule: CombineRows, num_clients: int, num_local: int, num_ranks: int) -> int:
    """About how many bytes a rank needs to combine updates (num_clients, width), of which it trains `num_local`."""
    block = max((columns.stop - columns.start for columns in blocks(width)), default=0)
    wave = min(num_ranks, len(blocks(width)))
    sent = num_local * block * wave if num_ranks > 1 else 0
    in_double = 4 * num_clients * min(block, CHUNK)  # a chunk, sorted or mixed, and a temporary
    tables = (
        (4 + wave) * (num_clients + 1) ** 2 if rule.mix and not rule.measure else 0
    )  # of squared distances, half of one for each rank
    return 4 * (num_local * width + sent + 3 * num_clients * block) + 8 * (in_double + tables)


class Exchange(NamedTuple):
    """What the ranks send each other of the rows of a round, in bytes."""

    times: int  # that all rows are exchanged
    num_blocks: int
    block_bytes: int  # of one block of all rows, which a rank has in memory at a time
    sent: int  # by a rank to all others, at most
    received: int  # by a rank from all others, at most
    tables: int  # that rank 0 receives from the others: distances, or what the rule measures


def exchange(width: int, rule: CombineRows, num_rows: int, num_local: int, num_ranks: int) -> Exchange:
    """Forecast the exchange of rows (num_rows, width) float32, of which a rank has `num_local`."""
    all_blocks, times = blocks(width), 2 if rule.mix else 1
    widths = [block.stop - block.start for block in all_blocks]
    of_rank = [sum(widths[rank::num_ranks]) for rank in range(num_ranks)]
    table = 0 if not rule.mix else 16 * num_rows if rule.measure else 4 * num_rows * (num_rows + 1)
    return Exchange(
        times=times,
        num_blocks=len(all_blocks),
        block_bytes=4 * num_rows * max(widths, default=0),
        sent=4 * times * num_local * (width - min(of_rank)),
        received=4 * times * (num_rows - num_local) * max(of_rank),
        tables=table * (len(all_blocks) - len(all_blocks[::num_ranks])),
    )


def blocks(width: int) -> list[slice]:
    """Divide the columns into blocks, each of one or several chunks."""
    num_chunks = -(-width // CHUNK)
    size = CHUNK * max(1, -(-num_chunks // MAX_BLOCKS))
    return [slice(start, min(start + size, width)) for start in range(0, width, size)]


def chunks(block: torch.Tensor) -> Iterator[torch.Tensor]:
    """The columns of a block, as float64, a chunk at a time."""
    for start in range(0, block.shape[1], CHUNK):
        yield block[:, start : start + CHUNK].double()


def measured(rule: CombineRows, block: torch.Tensor) -> torch.Tensor:
    """What `rule` measures in a block, flat: squared distances, or what it says itself; chunks are added in their order."""
    if rule.measure is None:
        return squares(block)
    first, *rest = (rule.measure(chunk).flatten() for chunk in chunks(block))
    return sum(rest, first)


def squares(block: torch.Tensor) -> torch.Tensor:
    """Squared distances in some columns between rows (num_clients, width), and of each row to zero, as a flat upper triangle.

    The rows' differences are squared: norms minus products would lose the digits of updates that differ little.
    """
    total = torch.zeros((len(block) + 1) * len(block) // 2, dtype=torch.float64)
    for chunk in chunks(block):
        total += torch.pdist(torch.cat([chunk, torch.zeros_like(chunk[:1])])).square_()
    return total


def symmetric(triangle: torch.Tensor, num_points: int) -> torch.Tensor:
    """The table (num_points, num_points) of a flat upper triangle."""
    table = torch.zeros(num_points, num_points, dtype=triangle.dtype)
    above = torch.triu_indices(num_points, num_points, 1)
    table[above[0], above[1]] = triangle
    return table + table.T


def mixed(coefficients: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
    """coefficients (num_rows, num_clients) times rows (num_clients, width); the rows themselves without coefficients."""
    return rows if coefficients is None else steady.multiply(coefficients[None], rows[None])[0]
