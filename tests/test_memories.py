"""Memories: the rows are those of a dictionary on one rank, whoever trains a client and wherever its row lies."""

import errno
import os
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from flora_hpc import memories
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.communicator import Communicator
from flora_hpc.comm.meter import Meter
from flora_hpc.data.images import Ints
from flora_hpc.errors import UserError
from flora_hpc.memories import Memories
from tests.threads import on_ranks

INITIAL = {"moments": torch.zeros(3), "steps": torch.tensor([-0.0]), "private": torch.tensor([0.5, float("nan")])}
ROW_BYTES = 4 * 6
EVERYTHING_FITS = 2**30
NUM_ROUNDS, NUM_CLIENTS = 6, 40

Rows = dict[str, torch.Tensor]


def trained(rows: Rows, clients: Ints, number: int) -> Rows:
    """What clients make of their rows in a round."""
    draws = torch.from_numpy(np.sin(clients * 7.0 + number)).float()[:, None]
    return {name: (values.nan_to_num(2.0) * 1.5 + draws * (i + 1)) for i, (name, values) in enumerate(rows.items())}


def cohort(number: int) -> Ints:
    """A few clients in any order; some numbers are large."""
    clients = np.random.default_rng(number).choice(NUM_CLIENTS, 11, replace=False).astype(np.int64)
    return np.where(clients % 7 == 0, clients + 2**40, clients)


def dealt(clients: Ints, number: int, size: int) -> list[Ints]:
    """Who trains whom: in every round another rank; some ranks train nobody."""
    takers = np.random.default_rng([number, size]).integers(0, max(1, size - number % 2), len(clients))
    return [clients[takers == rank] for rank in range(size)]


def play(comm: Communicator, max_bytes: int, all_ask_for_all: bool = False) -> Memories:
    """Some rounds in which each rank trains its clients in groups of three."""
    memories = Memories(comm, INITIAL, max_bytes)
    for number in range(NUM_ROUNDS):
        clients = dealt(cohort(number), number, comm.size)[comm.rank]
        borrowed = memories.borrow(cohort(number) if all_ask_for_all else clients)
        groups = [clients[first : first + 3] for first in range(0, len(clients), 3)]
        results = [trained(borrowed.read(group), group, number) for group in groups]
        empty = {name: values.new_zeros(0, len(values)) for name, values in INITIAL.items()}
        memories.give_back(clients, {name: torch.cat([rows[name] for rows in [empty, *results]]) for name in INITIAL})
    return memories


def expected() -> dict[int, bytes]:
    """The bytes of each client's row after the rounds, by a dictionary."""
    rows: dict[int, Rows] = {}
    for number in range(NUM_ROUNDS):
        for client in cohort(number).tolist():
            before = rows.get(client, {name: values[None] for name, values in INITIAL.items()})
            rows[client] = trained(before, np.array([client]), number)
    return {client: torch.cat(list(parts.values()), 1).numpy().tobytes() for client, parts in rows.items()}


def contents(memories: Memories) -> dict[int, bytes]:
    return {
        client: row.tobytes() for clients, rows in memories.pieces() for client, row in zip(clients.tolist(), rows, strict=True)
    }


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memories, "BLOCK_BYTES", 4 * ROW_BYTES + 1)


@pytest.mark.parametrize("max_bytes", [EVERYTHING_FITS, 5 * ROW_BYTES, 0], ids=["memory", "both", "file"])
@pytest.mark.parametrize("all_ask_for_all", [False, True], ids=["own", "all"])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_rows_are_the_same_whoever_trains_and_wherever_they_lie(size: int, all_ask_for_all: bool, max_bytes: int) -> None:
    homes = on_ranks(size, lambda comm: play(comm, max_bytes, all_ask_for_all))
    rows: dict[int, bytes] = {}
    for rank, home in enumerate(homes):
        assert set(home.clients % size) <= {rank}
        assert all(first < second for first, second in pairwise(home.clients.tolist()))
        assert home.spilled_bytes == max(0, len(home) * ROW_BYTES - max_bytes // ROW_BYTES * ROW_BYTES)
        assert home.num_bytes == len(home) * ROW_BYTES
        rows |= contents(home)
    assert rows == expected()


def test_a_client_that_was_never_trained_has_the_initial_values() -> None:
    memories = Memories(Serial(), INITIAL, EVERYTHING_FITS)
    rows = memories.borrow(np.array([4, 2**40])).read(np.array([2**40, 4]))
    for name, values in INITIAL.items():
        assert rows[name].numpy().tobytes() == values.expand(2, -1).contiguous().numpy().tobytes()
    assert (len(memories), memories.num_bytes, list(memories.pieces())) == (0, 0, [])


def test_rows_are_read_in_any_order_and_are_copies() -> None:
    memories = Memories(Serial(), {"a": torch.zeros(2), "b": torch.zeros(1)}, EVERYTHING_FITS)
    memories.give_back(np.array([9, 5]), {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([[-1.0], [-2.0]])})
    borrowed = memories.borrow(np.array([5, 7, 9]))
    for _ in range(2):
        rows = borrowed.read(np.array([9, 7, 5]))
        assert {name: values.tolist() for name, values in rows.items()} == {"a": [[1, 2], [0, 0], [3, 4]], "b": [[-1], [0], [-2]]}
        assert all(values.is_contiguous() for values in rows.values())
        rows["a"].zero_()  # the next read is not concerned


def test_reading_after_rows_were_given_back_is_a_mistake() -> None:
    """The rows of other homes would be those of the round before."""
    memories = Memories(Serial(), {"a": torch.zeros(1)}, EVERYTHING_FITS)
    borrowed = memories.borrow(np.array([1]))
    memories.give_back(np.array([1]), {"a": torch.ones(1, 1)})
    with pytest.raises(AssertionError, match="newer"):
        borrowed.read(np.array([1]))


def test_clients_may_keep_nothing() -> None:
    def keep_nothing(comm: Communicator) -> int:
        memories = Memories(comm, {}, 0)
        memories.give_back(np.array([comm.rank, 10 + comm.rank]), {})
        assert memories.borrow(np.array([0, 1])).read(np.array([1, 0])) == {}
        return memories.num_bytes

    assert on_ranks(2, keep_nothing) == [0, 0]


@pytest.mark.parametrize(("trainer", "num_bytes"), [(0, [0, 0]), (1, [8 + ROW_BYTES, 8 + 8 + ROW_BYTES])])
def test_only_rows_that_have_another_home_are_sent(trainer: int, num_bytes: list[int]) -> None:
    """Of client 0, which lives on rank 0: twice its number, its row there and its row back."""

    def train(comm: Communicator) -> int:
        meter = Meter(comm)
        memories, clients = Memories(meter, INITIAL, EVERYTHING_FITS), np.array([0] * (comm.rank == trainer), np.int64)
        rows = {name: values.repeat(len(clients), 1) for name, values in INITIAL.items()}
        memories.load(np.array([0]), memories.initial_rows(1))
        memories.borrow(clients)
        memories.give_back(clients, rows)
        return meter.lap().num_bytes

    assert on_ranks(2, train) == num_bytes


def test_a_row_that_does_not_exist_is_not_sent() -> None:
    def borrow(comm: Communicator) -> int:
        meter = Meter(comm)
        Memories(meter, INITIAL, EVERYTHING_FITS).borrow(np.arange(100))
        return meter.lap().num_bytes

    assert on_ranks(2, borrow) == [50 * 8, 50 * 8]


def test_only_clients_that_were_trained_take_memory() -> None:
    memories = Memories(Serial(), {"a": torch.zeros(1000)}, EVERYTHING_FITS)
    for client in (10**12, 3, 10**6):
        memories.give_back(np.array([client]), {"a": torch.ones(1, 1000)})
    assert (len(memories), memories.clients.tolist(), memories.num_bytes) == (3, [3, 10**6, 10**12], 12_000)


def test_loading_takes_the_clients_of_this_home() -> None:
    def load(comm: Communicator) -> dict[int, bytes]:
        memories = Memories(comm, {"a": torch.zeros(1)}, 8)
        memories.load(np.array([7, 0, 3]), np.array([[0.7], [0.0], [0.3]], np.float32))
        return contents(memories)

    texts = {client: np.float32(client / 10).tobytes() for client in (0, 3, 7)}
    assert on_ranks(3, load) == [{0: texts[0], 3: texts[3]}, {7: texts[7]}, {}]


def spilled(num_rows: int) -> Memories:
    """Memories on one rank with so many rows in a file."""
    memories = Memories(Serial(), {"a": torch.zeros(2)}, 0)
    memories.give_back(np.arange(num_rows), {"a": torch.arange(2.0 * num_rows).view(-1, 2)})
    return memories


def test_the_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    memories = spilled(3)
    assert memories.spilled_bytes == 24
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_closed_with_the_memories() -> None:
    memories = spilled(3)
    file = memories._store._file
    assert file is not None
    assert not file.closed
    del memories
    assert file.closed


@pytest.mark.parametrize("name", ["preadv", "pwritev"])
def test_the_system_may_transfer_a_part_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux transfers at most 2 GiB in a call; here 3 bytes."""
    whole: Callable[[int, Sequence[memoryview], int], int] = getattr(os, name)
    monkeypatch.setattr(os, name, lambda file, buffers, offset: whole(file, [buffers[0][:3]], offset))
    ((clients, rows),) = spilled(4).pieces()
    assert (clients.tolist(), rows.tolist()) == ([0, 1, 2, 3], [[0, 1], [2, 3], [4, 5], [6, 7]])


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "pwritev", full)
    cannot = rf"rows that clients keep cannot lie in a temporary file in {tmp_path} \(No space left on device\); export TMPDIR="
    with pytest.raises(UserError, match=cannot):
        spilled(3)


def test_no_folder_for_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"absent \(No such file or directory\); export TMPDIR="):
        spilled(3)
