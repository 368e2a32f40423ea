"""Memories: rows of numbers that clients keep from one round to the next, whichever rank trains them.

The row of a client has everything that this client keeps: for example moments of its optimizer, its control variate, its own part
of the adapter. The row lies at the client's home, rank `client % size`. In every round all ranks do this together:

    rank that trains a client              home of the client
        borrow      --- its number --->
                    <---- its row -----    (no row for a client that was never trained: it has the initial values)
        train
        give_back   ---- its row ----->    the row is stored

Rows cross ranks as bytes, so the numbers do not depend on the number of ranks, nor on who trains. A rank sends no row to itself.
"""

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from flora_hpc.comm.communicator import Communicator
from flora_hpc.data.images import Ints
from flora_hpc.errors import UserError, reason

BLOCK_BYTES = 2**25  # rows in memory lie in blocks, so that no row moves when there are more rows

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


class Memories:
    """The rows of the clients whose home is this rank; a client has a row once it was trained.

    `initial` has the values, (width,) float32 by name, of a client that was never trained; a row has all names, in this order. Rows
    beyond `max_bytes` lie in a temporary file of this node.
    """

    def __init__(self, comm: Communicator, initial: Mapping[str, torch.Tensor], max_bytes: int) -> None:
        self.names, self.widths = tuple(initial), tuple(len(values) for values in initial.values())
        self.width = sum(self.widths)
        self._initial = np.concatenate([np.zeros(0, np.float32), *(_numbers(values) for values in initial.values())])
        self.num_ranks = comm.size
        self._comm, self._store, self._num_changes = comm, Store(self.width, max_bytes), 0
        self.clients: Ints = np.zeros(0, np.int64)  # (num_rows,) ascending
        self._places: Ints = np.zeros(0, np.int64)  # (num_rows,) of the clients' rows in the store

    def __len__(self) -> int:
        """The number of rows at this home."""
        return len(self.clients)

    @property
    def num_bytes(self) -> int:
        """Size of the rows at this home, in memory and in the file."""
        return len(self) * self._initial.nbytes

    @property
    def spilled_bytes(self) -> int:
        """Size of the rows in the temporary file."""
        return max(0, len(self) - self._store.num_in_memory) * self._initial.nbytes

    def borrow(self, clients: Ints) -> "Borrowed":
        """Fetch the rows of different clients from their homes. All ranks call this together, each with its own clients.

        The rows can be read until the next `give_back` or `load`.
        """
        ordered = np.unique(clients)
        assert len(ordered) == len(clients), "a client is borrowed once"
        parts = [ordered[of_home] for of_home in self._by_home(ordered)]
        parts[self._comm.rank] = ordered[:0]
        requests = self._comm.exchange([part.tobytes() for part in parts])
        answers = self._comm.exchange([self._answer(np.frombuffer(request, np.int64)) for request in requests])
        sources = [_source(*_unpack(answer, self.width)) for answer in answers]
        sources[self._comm.rank] = Source(self.clients, lambda rows: self._store.read(self._places[rows]))
        return Borrowed(self, sources)

    def give_back(self, clients: Ints, rows: Mapping[str, torch.Tensor]) -> None:
        """Store the rows of trained clients, (num_clients, width) float32 by name, at their homes.

        All ranks call this together, each with what it trained; a client comes from one rank only. When the temporary file cannot
        take the rows, raises UserError, on this rank alone and after the exchange.
        """
        assert tuple(rows) == self.names
        numbers = np.concatenate([np.zeros((len(clients), 0), np.float32), *map(_numbers, rows.values())], axis=1)
        positions, rank = self._by_home(clients), self._comm.rank
        parts = [_pack(clients[of_home], numbers[of_home]) if home != rank else b"" for home, of_home in enumerate(positions)]
        parts = self._comm.exchange(parts)
        self._keep(clients[positions[rank]], numbers[positions[rank]])
        for part in parts:
            self._keep(*_unpack(part, self.width))

    def is_home(self, clients: Ints) -> Mask:
        """Which clients have their home on this rank."""
        mask: Mask = clients % self._comm.size == self._comm.rank
        return mask

    def pieces(self) -> Iterator[tuple[Ints, Floats]]:
        """All clients with a row at this home, ascending, and their rows (num_rows, width), a block of rows at a time."""
        for first in range(0, len(self), self._store.block_rows):
            rows = slice(first, first + self._store.block_rows)
            yield self.clients[rows], self._store.read(self._places[rows])

    def load(self, clients: Ints, rows: Floats) -> None:
        """Store the rows (num_clients, width) of those clients whose home is this rank. Raises UserError like `give_back`."""
        here = self.is_home(clients)
        self._keep(clients[here], rows[here])

    def initial_rows(self, num_clients: int) -> Floats:
        """Rows (num_clients, width) of clients that were never trained."""
        return np.tile(self._initial, (num_clients, 1))

    def _by_home(self, clients: Ints) -> list[Ints]:
        """For each rank, the positions in `clients` of those whose home it is."""
        homes = clients % self._comm.size
        order = np.argsort(homes, kind="stable")
        return np.split(order, np.searchsorted(homes[order], np.arange(1, self._comm.size)))

    def _answer(self, clients: Ints) -> bytes:
        """Those of the clients that have a row, and their rows."""
        mask, rows = _find(self.clients, clients)
        return _pack(clients[mask], self._store.read(self._places[rows]))

    def _keep(self, clients: Ints, rows: Floats) -> None:
        mask, old_rows = _find(self.clients, clients)
        places = np.empty(len(clients), np.int64)
        places[mask] = self._places[old_rows]
        places[~mask] = np.arange(len(self), len(self) + (~mask).sum())
        self._store.write(places, rows)
        new = np.argsort(clients[~mask])
        new_clients, new_places = clients[~mask][new], places[~mask][new]
        positions = np.searchsorted(self.clients, new_clients)
        self.clients, self._places = np.insert(self.clients, positions, new_clients), np.insert(self._places, positions, new_places)
        self._num_changes += 1


class Source(NamedTuple):
    """Rows of some clients."""

    clients: Ints  # ascending
    read: Callable[[Ints], Floats]  # rows (n, width) of clients[i], for n numbers i


class Borrowed:
    """The rows that a rank borrowed. Rows of clients whose home is this rank are read from the store, without a copy in between."""

    def __init__(self, memories: Memories, sources: Sequence[Source]) -> None:
        self._memories, self._sources, self._num_changes = memories, sources, memories._num_changes

    def read(self, clients: Ints) -> dict[str, torch.Tensor]:
        """The rows (num_clients, width) float32 by name of some of the borrowed clients: fresh copies in the memory of the CPU."""
        memories = self._memories
        assert memories._num_changes == self._num_changes, "rows at home would be newer than the others"
        rows = memories.initial_rows(len(clients))
        for source, of_home in zip(self._sources, memories._by_home(clients), strict=True):
            if len(of_home):
                mask, source_rows = _find(source.clients, clients[of_home])
                rows[of_home[mask]] = source.read(source_rows)
        parts = torch.from_numpy(rows).split_with_sizes(memories.widths, dim=1) if memories.names else ()
        return {name: part.clone(memory_format=torch.contiguous_format) for name, part in zip(memories.names, parts, strict=True)}


class Store:
    """Rows of `width` float32 numbers by place 0, 1, 2, ...; rows beyond `max_bytes` lie in a temporary file of this node.

    The file has no name, so that a killed run leaves nothing. It is read and written by system calls, not mapped into memory: in a
    mapped file, a full disk kills the process.
    """

    def __init__(self, width: int, max_bytes: int) -> None:
        self._width, self._row_bytes = width, 4 * width
        self.num_in_memory = max_bytes // max(1, self._row_bytes)  # rows that may lie in memory
        self.block_rows = max(1, BLOCK_BYTES // max(1, self._row_bytes))
        self._blocks: list[Floats] = []  # (block_rows, width) each
        self._file: IO[bytes] | None = None

    def read(self, places: Ints) -> Floats:
        """A copy of the rows (len(places), width) at these places."""
        rows = np.empty((len(places), self._width), np.float32)
        for block, mask, block_rows in self._in_memory(places):
            rows[mask] = block[block_rows]
        for i in np.flatnonzero(places >= self.num_in_memory):
            self._transfer(os.preadv, rows[i], places[i])
        return rows

    def write(self, places: Ints, rows: Floats) -> None:
        """Write rows (len(places), width) at these places. Raises UserError when the file cannot take them."""
        last = min(int(places.max(initial=-1)) + 1, self.num_in_memory)
        while len(self._blocks) * self.block_rows < last:
            num_rows = min(self.block_rows, self.num_in_memory - len(self._blocks) * self.block_rows)
            self._blocks.append(np.empty((num_rows, self._width), np.float32))
        for block, mask, block_rows in self._in_memory(places):
            block[block_rows] = rows[mask]
        for i in np.flatnonzero(places >= self.num_in_memory):
            self._transfer(os.pwritev, rows[i], places[i])

    def _in_memory(self, places: Ints) -> Iterator[tuple[Floats, Mask, Ints]]:
        """Each block with some of the places, the mask of these places, and their rows in the block."""
        numbers = np.where(places < self.num_in_memory, places // self.block_rows, -1)
        for number in np.unique(numbers[numbers >= 0]):
            mask = numbers == number
            yield self._blocks[number], mask, places[mask] % self.block_rows

    def _transfer(self, call: Callable[[int, list[memoryview], int], int], row: Floats, place: int) -> None:
        """Read or write a row of the file by `call`, which may transfer a part of it at a time."""
        rest, offset = row.view(np.uint8).data, (int(place) - self.num_in_memory) * self._row_bytes
        try:
            file = self._file = self._file or self._open()
            while rest:
                num_bytes = call(file.fileno(), [rest], offset)
                rest, offset = rest[num_bytes:], offset + num_bytes
        except OSError as error:
            raise UserError(
                f"rows that clients keep cannot lie in a temporary file in {tempfile.tempdir or 'TMPDIR'} ({reason(error)}); "
                "export TMPDIR=<a folder with more room on a local disk>, or use more nodes"
            ) from None

    def _open(self) -> IO[bytes]:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 -- it lives as long as the store
        weakref.finalize(self, file.close)
        return file


def _numbers(values: torch.Tensor) -> Floats:
    assert values.dtype == torch.float32
    numbers: Floats = values.detach().cpu().numpy()
    return numbers


def _find(table: Ints, clients: Ints) -> tuple[Mask, Ints]:
    """Which `clients` are in the ascending `table`, and the positions of those in the table."""
    if len(table) == 0:
        return np.zeros(len(clients), np.bool_), np.zeros(0, np.int64)
    positions = np.searchsorted(table, clients).clip(max=len(table) - 1)
    mask = table[positions] == clients
    return mask, positions[mask]


def _source(clients: Ints, rows: Floats) -> Source:
    return Source(clients, lambda numbers: rows[numbers])


def _pack(clients: Ints, rows: Floats) -> bytes:
    """The bytes of clients and of their rows, for `_unpack`."""
    return b"".join([np.ascontiguousarray(clients).data, np.ascontiguousarray(rows).data]) if len(clients) else b""


def _unpack(data: bytes, width: int) -> tuple[Ints, Floats]:
    num_clients = len(data) // (8 + 4 * width)
    clients = np.frombuffer(data, np.int64, num_clients)
    return clients, np.frombuffer(data, np.float32, num_clients * width, 8 * num_clients).reshape(num_clients, width)
