from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from flora_hpc import checkpoint, tensorfile
from flora_hpc.checkpoint import Checkpoint
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.communicator import Communicator
from flora_hpc.errors import UserError
from flora_hpc.memories import Memories
from flora_hpc.records import disk
from flora_hpc.records.known import RoundRecord
from flora_hpc.records.schema import CLIENTS, RANKS, ROUNDS
from flora_hpc.tensorfile import DamagedError
from tests.contracts.known_helpers import rows
from tests.threads import on_ranks

SERIAL = Serial()
SERVER: dict[str, Any] = {"velocity": torch.tensor([1.5, -2.0]), "steps": 3, "more": (torch.ones(1, dtype=torch.float64), [None])}


def make(number: int, **more: Any) -> Checkpoint:
    return Checkpoint(number, torch.tensor([0.1, -0.0, float(number)]), SERVER, **more)


def record() -> RoundRecord:
    return RoundRecord(
        rows(ROUNDS, {"round": 4, "train_loss": 0.5}),
        rows(RANKS, {"round": 4, "rank": 0}, {"round": 4, "rank": 1}),
        rows(CLIENTS, {"round": 4, "client": 7}, {"round": 4, "client": 2**40}),
    )


def read(file: Path) -> Checkpoint:
    return checkpoint.read(file.read_bytes())


def test_everything_survives_with_the_same_bits(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "new", make(4, untested=record(), parts=("a", "b")), "run")
    result = read(checkpoint.path(tmp_path / "new", 4))
    assert result.round == 4
    assert result.adapter.numpy().tobytes() == make(4).adapter.numpy().tobytes()
    assert result.server["velocity"].tolist() == [1.5, -2.0]
    assert result.server["steps"] == 3
    ones, (nothing,) = result.server["more"]
    assert (type(result.server["more"]), ones.dtype, ones.tolist(), nothing) == (tuple, torch.float64, [1.0], None)
    assert result.untested is not None
    for name in ("row", "ranks", "clients"):
        np.testing.assert_array_equal(getattr(result.untested, name), getattr(record(), name))
    result.untested.row["test_accuracy"] = 0.5  # noted when it is known
    assert result.parts == ("a", "b")


def test_nothing_to_keep_is_kept(tmp_path: Path) -> None:
    none = RoundRecord(rows(ROUNDS, {"round": 1}), rows(RANKS), rows(CLIENTS))
    checkpoint.write(tmp_path, Checkpoint(1, torch.zeros(0), None, none), "run")
    result = read(checkpoint.path(tmp_path, 1))
    assert (result.adapter.shape, result.server, result.parts) == ((0,), None, ())
    assert result.untested is not None
    assert (len(result.untested.ranks), len(result.untested.clients)) == (0, 0)


def memories(comm: Communicator = SERIAL, *clients: int, max_bytes: int = 2**30, width: int = 2) -> Memories:
    """Memories with rows of those of the clients whose home is this rank: each client's number, and 100 more."""
    result = Memories(comm, {"moments": torch.zeros(width), "steps": torch.zeros(1)}, max_bytes)
    numbers = np.array(clients, np.float32)[:, None]
    result.load(np.array(clients, np.int64), np.concatenate([numbers] * width + [numbers + 100], axis=1))
    return result


def contents(memories: Memories) -> dict[int, list[float]]:
    return {client: row.tolist() for clients, rows in memories.pieces() for client, row in zip(clients.tolist(), rows, strict=True)}


@pytest.mark.parametrize("max_bytes", [2**30, 24, 0])
@pytest.mark.parametrize(("num_writers", "num_readers"), [(3, 2), (1, 3), (2, 2), (3, 1)])
def test_any_number_of_ranks_reads_memories(
    num_writers: int, num_readers: int, max_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces of two rows; client 2^40 + 1 keeps its number's digits."""
    monkeypatch.setattr(tensorfile, "PIECE_BYTES", 48)
    monkeypatch.setattr("flora_hpc.memories.BLOCK_BYTES", 24)
    clients = (0, 3, 4, 7, 9, 12, 2**20, 2**40 + 1)

    def write(comm: Communicator) -> str:
        return checkpoint.write_memories(tmp_path, 6, comm.rank, memories(comm, *clients, max_bytes=max_bytes))

    files = on_ranks(num_writers, write)
    assert files == [f"round-000006-rank-{rank}-of-{num_writers}.safetensors" for rank in range(num_writers)]

    def read(comm: Communicator) -> bool:
        result = memories(comm, max_bytes=max_bytes)
        checkpoint.read_memories(tmp_path, files, result)
        return contents(result) == contents(memories(comm, *clients))

    assert on_ranks(num_readers, read) == [True] * num_readers


def test_a_file_of_memories_is_a_safetensors_file(tmp_path: Path) -> None:
    tensors = load((tmp_path / checkpoint.write_memories(tmp_path, 6, 0, memories(SERIAL, 7, 2))).read_bytes())
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "clients": [2, 7], "rows": [[2, 2, 102], [7, 7, 107]]
    }  # fmt: skip


def test_no_client_was_trained_yet(tmp_path: Path) -> None:
    result = memories()
    checkpoint.read_memories(tmp_path, [checkpoint.write_memories(tmp_path, 6, 0, memories())], result)
    assert len(result) == 0


def test_clients_that_keep_nothing(tmp_path: Path) -> None:
    nothing = Memories(SERIAL, {}, 0)
    nothing.load(np.array([3]), np.zeros((1, 0), np.float32))
    file, again = checkpoint.write_memories(tmp_path, 6, 0, nothing), Memories(SERIAL, {}, 0)
    checkpoint.read_memories(tmp_path, [file], again)
    assert again.clients.tolist() == [3]
    with pytest.raises(UserError, match=r"a client kept nothing, and keeps moments \(2\), steps \(1\) in this run; go on with"):
        checkpoint.read_memories(tmp_path, [file], memories())


def test_memories_of_another_configuration(tmp_path: Path) -> None:
    file = checkpoint.write_memories(tmp_path, 6, 0, memories(SERIAL, 1, width=1000))
    with pytest.raises(UserError, match=r"a client kept moments \(1,000\), steps \(1\), and keeps moments \(2\), steps \(1\)"):
        checkpoint.read_memories(tmp_path, [file], memories())


def test_optimizers_of_an_earlier_version_are_no_memories(tmp_path: Path) -> None:
    tensorfile.write(tmp_path / "old", {"clients": torch.tensor([1])}, {"round": "6"})
    with pytest.raises(
        UserError, match=r"old: an earlier flora-hpc wrote it, with optimizers by group; start a new run with another --out"
    ):
        checkpoint.read_memories(tmp_path, ["old"], memories())


@pytest.mark.parametrize("place", [0, 8, 40, 150, -1, -13, -25, -29])
def test_any_changed_byte_of_memories_costs_a_round(place: int, tmp_path: Path) -> None:
    """Of the last 12 + 12 + 16 bytes, those of two rows and of two clients, or of what stands before."""
    for number in (1, 2):
        part = checkpoint.write_memories(tmp_path, number, 0, memories(SERIAL, 7, 2))
        checkpoint.write(tmp_path, make(number, parts=(part,)), "run")
    data = bytearray((tmp_path / part).read_bytes())
    data[place] ^= 1
    (tmp_path / part).write_bytes(data)
    number, (note,) = newest(tmp_path)
    assert number == 1
    assert " cannot be used (it" in note
    with pytest.raises(UserError, match=r"cannot be used \(|in this run"):
        checkpoint.read_memories(tmp_path, [part], memories())


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_cut_file_of_memories_is_noticed(length: int, tmp_path: Path) -> None:
    file = checkpoint.write_memories(tmp_path, 2, 0, memories(SERIAL, 7, 2))
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:length])
    with pytest.raises(UserError, match=r"cannot be used \(it is no checkpoint"):
        checkpoint.read_memories(tmp_path, [file], memories())


def test_memories_that_no_disk_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(UserError, match=r"rank-0-of-1.safetensors: cannot be written \(No space left on device\); make room"):
        checkpoint.write_memories(tmp_path, 2, 0, memories(SERIAL, 7, 2))
    assert list(tmp_path.iterdir()) == []


def test_the_two_newest_rounds_are_kept_with_their_shards(tmp_path: Path) -> None:
    for number in (1, 2, 9, 10):
        part = checkpoint.write_memories(tmp_path, number, 0, memories())
        checkpoint.write(tmp_path, make(number, parts=(part,)), "run")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "round-000009-rank-0-of-1.safetensors", "round-000009.safetensors",
        "round-000010-rank-0-of-1.safetensors", "round-000010.safetensors",
    ]  # fmt: skip


def test_what_is_newer_than_the_round_that_is_written_stays(tmp_path: Path) -> None:
    """A rank may be writing the memories of the next round, or a newer file may be damaged."""
    for number in (7, 8):
        checkpoint.path(tmp_path, number).write_text("damaged")
    checkpoint.write_memories(tmp_path, 4, 1, memories())
    for number in (1, 2, 3):
        checkpoint.write(tmp_path, make(number), "run")
    assert [int(file.name[6:12]) for file in sorted(tmp_path.iterdir())] == [2, 3, 4, 7, 8]
    assert newest(tmp_path)[0] == 3


def test_two_tensors_of_a_state_may_share_their_memory(tmp_path: Path) -> None:
    one = torch.ones(2)
    checkpoint.write(tmp_path, Checkpoint(1, one, (one, one)), "run")
    assert [part.tolist() for part in read(checkpoint.path(tmp_path, 1)).server] == [[1, 1], [1, 1]]


def newest(folder: Path, last_round: int = 100) -> tuple[int | None, list[str]]:
    data, point, notes = checkpoint.newest(folder, "run", last_round)
    assert bool(data) == (point is not None)
    return point and point.round, notes


def test_the_newest_one_is_found(tmp_path: Path) -> None:
    assert newest(tmp_path) == (None, [])
    assert newest(tmp_path / "not there") == (None, [])
    for number in (1, 2):
        checkpoint.write(tmp_path, make(number), "run")
    assert newest(tmp_path) == (2, [])


@pytest.mark.parametrize("place", [0, 8, 40, -200, -1])
def test_any_changed_byte_is_noticed_and_the_one_before_is_taken(place: int, tmp_path: Path) -> None:
    for number in (1, 2):
        checkpoint.write(tmp_path, make(number), "run")
    file = checkpoint.path(tmp_path, 2)
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    number, (note,) = newest(tmp_path)
    assert number == 1
    assert note.startswith(f"{file} cannot be used (it")


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_file_that_was_cut_is_noticed(length: int, tmp_path: Path) -> None:
    checkpoint.write(tmp_path, make(1), "run")
    data = checkpoint.path(tmp_path, 1).read_bytes()
    with pytest.raises(DamagedError):
        checkpoint.read(data[:length])


def test_a_lost_shard_costs_a_round(tmp_path: Path) -> None:
    for number in (1, 2):
        part = checkpoint.write_memories(tmp_path, number, 0, memories(SERIAL, 0))
        checkpoint.write(tmp_path, make(number, parts=(part,)), "run")
    (tmp_path / "round-000002-rank-0-of-1.safetensors").unlink()
    number, (note,) = newest(tmp_path)
    assert number == 1
    assert "No such file" in note


def test_a_checkpoint_that_is_newer_than_the_log_is_left_aside(tmp_path: Path) -> None:
    """Except for a round that is not tested yet, since the log does not contain it."""
    checkpoint.write(tmp_path, make(3), "run")
    checkpoint.write(tmp_path, make(4, untested=record()), "run")
    assert newest(tmp_path, 3) == (4, [])
    number, notes = newest(tmp_path, 2)
    assert number is None
    assert [line.endswith("is newer than the log, which ends with round 2") for line in notes] == [True, True]


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, replace(make(1), identity={"labels": "1"}), "another run")
    with pytest.raises(UserError, match="belongs to a run with another configuration"):
        newest(tmp_path)


def test_a_checkpoint_without_an_identity_is_older_than_the_names_of_runs(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, make(1), "the same run under a former name")
    assert newest(tmp_path) == (1, [])


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.write(tmp_path, make(1), "run")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(UserError, match=r"round-000002.safetensors: cannot be written \(No space left on device\); make room"):
        checkpoint.write(tmp_path, make(2), "run")
    assert [file.name for file in tmp_path.iterdir()] == ["round-000001.safetensors"]
    assert newest(tmp_path) == (1, [])
