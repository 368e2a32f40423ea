from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flora_hpc import checkpoint
from flora_hpc.checkpoint import Checkpoint, DamagedError
from flora_hpc.errors import UserError
from flora_hpc.optimizers import Kept
from flora_hpc.records import disk
from flora_hpc.records.known import RoundRecord
from flora_hpc.records.schema import CLIENTS, RANKS, ROUNDS
from tests.contracts.known_helpers import rows

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


def group(*clients: int) -> Kept:
    """Optimizer states of clients: each client's number, and another value."""
    numbers = torch.tensor(clients, dtype=torch.float32)[:, None]
    return Kept(np.array(clients), (numbers.expand(-1, 3), 100 + numbers))


def test_optimizers_come_back_by_client_in_whatever_groups_they_were_written(tmp_path: Path) -> None:
    parts = [
        checkpoint.write_optimizers(tmp_path, 6, 0, [group(7, 2), group(4)]),
        checkpoint.write_optimizers(tmp_path, 6, 1, [group(9, 3, 1)]),
        checkpoint.write_optimizers(tmp_path, 6, 2, []),
    ]
    groups = [group(1, 2), group(9), group(4, 7)]
    results = checkpoint.read_optimizers(tmp_path, parts, [each.clients for each in groups])
    for state, expected in zip(results, groups, strict=True):
        assert state.clients.tolist() == expected.clients.tolist()
        assert [part.tolist() for part in state.state] == [part.tolist() for part in expected.state]
    with pytest.raises(UserError, match="keeps no optimizer of client 5; start a new run"):
        checkpoint.read_optimizers(tmp_path, parts, [np.array([1, 5])])


def test_plain_sgd_remembers_nothing(tmp_path: Path) -> None:
    parts = [checkpoint.write_optimizers(tmp_path, 6, 0, [Kept(np.array([3, 4]), ())])]
    (result,) = checkpoint.read_optimizers(tmp_path, parts, [np.array([4])])
    assert result.state == ()


def test_the_two_newest_rounds_are_kept_with_their_shards(tmp_path: Path) -> None:
    for number in (1, 2, 9, 10):
        part = checkpoint.write_optimizers(tmp_path, number, 0, [])
        checkpoint.write(tmp_path, make(number, parts=(part,)), "run")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "round-000009-rank-0.safetensors", "round-000009.safetensors",
        "round-000010-rank-0.safetensors", "round-000010.safetensors",
    ]  # fmt: skip


def test_what_is_newer_than_the_round_that_is_written_stays(tmp_path: Path) -> None:
    """A rank may be writing the optimizers of the next round, or a newer file may be damaged."""
    for number in (7, 8):
        checkpoint.path(tmp_path, number).write_text("damaged")
    checkpoint.write_optimizers(tmp_path, 4, 1, [])
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
        part = checkpoint.write_optimizers(tmp_path, number, 0, [group(0)])
        checkpoint.write(tmp_path, make(number, parts=(part,)), "run")
    (tmp_path / "round-000002-rank-0.safetensors").unlink()
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
