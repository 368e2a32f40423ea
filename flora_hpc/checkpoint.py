"""Write and read checkpoints: one file per saved round, and one file per rank with what clients keep between rounds.

    checkpoint/round-000012.safetensors               adapter, server state, merged weights, a round not tested yet
    checkpoint/round-000012-rank-3-of-8.safetensors   memories of the clients whose home is rank 3 of 8, a row for each

A file is complete or missing: it is written under another name, synced and renamed. The files of the ranks are written before the
file of the round, which lists their names. Each file has a checksum of all its numbers. The two newest rounds are kept, so that a
damaged file costs one round. Memories may be larger than what is free in memory, so their files are written and read in pieces.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flora_hpc import tensorfile
from flora_hpc.errors import UserError
from flora_hpc.memories import Memories
from flora_hpc.records.known import RoundRecord
from flora_hpc.records.schema import CLIENTS, RANKS, ROUNDS, Rows
from flora_hpc.tensorfile import DamagedError, Tensors

NUM_KEPT = 2  # rounds
TABLES = {"row": ROUNDS, "ranks": RANKS, "clients": CLIENTS}  # parts of a RoundRecord
MERGED = "merged."  # begins the names of such matrices
NAME = re.compile(r"round-(\d+)\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a federation after a round."""

    round: int
    adapter: torch.Tensor  # (num_params,) float32
    server: Any  # None, a tensor, or a tuple, list or dict of these
    untested: RoundRecord | None = None  # this round's record, when the round is tested during the next round
    parts: tuple[str, ...] = field(default=())  # names of the files of the ranks
    identity: Mapping[str, str] = field(default_factory=dict)  # name of each input (data, weights, ...) -> its digest
    run: str = ""  # the digest of the run's configuration; set by `read`
    merged: Mapping[str, torch.Tensor] = field(default_factory=dict)  # into frozen weights: name of A -> (out, in) float32


def path(folder: Path, number: int) -> Path:
    """The file of a round."""
    return folder / f"round-{number:06d}.safetensors"


def write(folder: Path, checkpoint: Checkpoint, run: str) -> None:
    """Write the file of a round of the run with digest `run`, then remove all but the `NUM_KEPT` newest rounds.

    Raises UserError when the file cannot be written; then no older file is removed.
    """
    tensors: Tensors = {"adapter": checkpoint.adapter.cpu()}
    tree = _flatten(checkpoint.server, "server", tensors)
    tensors |= {f"{MERGED}{name}": matrix.cpu() for name, matrix in checkpoint.merged.items()}
    if checkpoint.untested is not None:
        for name in TABLES:
            rows = getattr(checkpoint.untested, name).tobytes()
            tensors[f"untested.{name}"] = torch.from_numpy(np.frombuffer(rows, np.uint8).copy())
    facts = {"round": str(checkpoint.round), "run": run, "server": json.dumps(tree), "shards": json.dumps(checkpoint.parts)}
    facts["identity"] = json.dumps(dict(checkpoint.identity))
    tensorfile.write(path(folder, checkpoint.round), tensors, facts)
    prune(folder, checkpoint.round, NUM_KEPT)


def prune(folder: Path, last: int, num_kept: int) -> None:
    """Remove all rounds before the `num_kept` newest rounds up to round `last`."""
    newest_rounds = [number for number in _rounds(folder) if number <= last][:num_kept]
    for file in folder.glob("round-*") if newest_rounds else ():
        if int(file.name.split("-")[1].split(".")[0]) < newest_rounds[-1]:  # any rank may be writing a newer round
            file.unlink(missing_ok=True)


def write_memories(folder: Path, number: int, rank: int, memories: Memories) -> str:
    """Write the rows at the home of one rank, and return the name of the file. Raises UserError like `write`."""
    file, facts = (
        folder / f"round-{number:06d}-rank-{rank}-of-{memories.num_ranks}.safetensors",
        {"round": str(number)} | _layout(memories),
    )
    tensorfile.write_rows(file, memories.clients, memories.width, (rows for _, rows in memories.pieces()), facts)
    return file.name


def read(data: bytes) -> Checkpoint:
    """The checkpoint in the bytes of a file that `write` wrote. Raises DamagedError for other bytes."""
    tensors, facts = tensorfile.read(data)
    try:
        untested = None
        if "untested.row" in tensors:
            rows = {name: _rows(tensors[f"untested.{name}"], dtype) for name, dtype in TABLES.items()}
            untested = RoundRecord(rows["row"], rows["ranks"], rows["clients"])
        server = _unflatten(json.loads(facts["server"]), "server", tensors)
        parts = json.loads(facts["shards"])
        identity = json.loads(facts.get("identity", "{}"))  # runs before schema 5 have no identity
        merged = {name.removeprefix(MERGED): matrix for name, matrix in tensors.items() if name.startswith(MERGED)}
        return Checkpoint(int(facts["round"]), tensors["adapter"], server, untested, tuple(parts), identity, facts["run"], merged)
    except (LookupError, ValueError) as error:
        raise DamagedError(f"it lacks {error}") from None


def read_memories(folder: Path, files: Iterable[str], memories: Memories) -> None:
    """Load the rows of the clients whose home is this rank; any number of ranks may have written the files.

    Raises UserError when a file cannot be read, or when clients kept something else.
    """
    for name in files:
        try:
            _read_rows(folder / name, memories)
        except (OSError, DamagedError) as error:
            raise UserError(f"{folder / name}: cannot be used ({error}); all nodes must see the files of the run") from None


def _read_rows(file: Path, memories: Memories) -> None:
    with tensorfile.opened(file) as (tensors, facts):
        if "names" not in facts:
            raise UserError(f"{file}: an earlier flora-hpc wrote it, with optimizers by group; start a new run with another --out")
        layout = {key: facts[key] for key in ("names", "widths")}
        clients = tensors.get_tensor("clients").numpy()
    if layout != _layout(memories):
        raise UserError(
            f"{file}: a client kept {_sentence(**layout)}, and keeps {_sentence(**_layout(memories))} in this run; "
            "go on with the configuration that the run was started with"
        )
    if not memories.is_home(clients).any():
        return
    first = 0
    for name, piece in tensorfile.read_pieces(file):
        if name == "rows":
            memories.load(clients[first : first + len(piece)], piece.numpy())
            first += len(piece)


def newest(folder: Path, run: str, last_round: int) -> tuple[bytes, Checkpoint | None, list[str]]:
    """The newest usable checkpoint of `run`, as bytes and decoded; None for none. The log ends with round `last_round`.

    Also a sentence about each newer checkpoint that cannot be used. Raises UserError when the checkpoints belong to another run.
    Checkpoints before schema 5 have no identity, and their digest of the run differs.
    """
    notes = []
    for number in _rounds(folder):
        file = path(folder, number)
        try:
            data = file.read_bytes()
            checkpoint = read(data)
            for part in checkpoint.parts:
                for _ in tensorfile.read_pieces(folder / part):
                    """Read all pieces, which checks them."""
        except (OSError, DamagedError) as error:
            notes.append(f"{file} cannot be used ({error})")
            continue
        if checkpoint.identity and checkpoint.run != run:
            raise UserError(f"{file}: belongs to a run with another configuration; give --out a directory of its own")
        if number > last_round + (checkpoint.untested is not None):
            notes.append(f"{file} is newer than the log, which ends with round {last_round}")
            continue
        return data, checkpoint, notes
    return b"", None, notes


def _rows(tensor: torch.Tensor, dtype: np.dtype[Any]) -> Rows:
    """The rows of a table, from a tensor of their bytes."""
    return np.frombuffer(tensor.numpy().tobytes(), dtype).copy()


def _rounds(folder: Path) -> list[int]:
    """Rounds that have a file, newest first."""
    matches = (NAME.fullmatch(file.name) for file in folder.glob("round-*"))
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def _layout(memories: Memories) -> dict[str, str]:
    """What a row has, as facts of a file."""
    return {"names": json.dumps(memories.names), "widths": json.dumps(memories.widths)}


def _sentence(names: str, widths: str) -> str:
    """'moments (1,024), steps (1)', from the facts of a file."""
    return ", ".join(f"{name} ({width:,})" for name, width in zip(json.loads(names), json.loads(widths), strict=True)) or "nothing"


def _flatten(tree: Any, name: str, into: Tensors) -> Any:
    """Copy the tensors of a tree `into` a dictionary, and return the tree's shape, for JSON."""
    if isinstance(tree, torch.Tensor):
        into[name] = tree.cpu().clone()  # safetensors refuses two tensors that share memory
        return "tensor"
    if isinstance(tree, dict):
        assert all(isinstance(key, str) for key in tree), "JSON would convert other keys to texts"
        return {"dict": {key: _flatten(value, f"{name}.{key}", into) for key, value in tree.items()}}
    if isinstance(tree, tuple | list):
        return {type(tree).__name__: [_flatten(value, f"{name}.{i}", into) for i, value in enumerate(tree)]}
    return {"value": tree}


def _unflatten(shape: Any, name: str, tensors: Tensors) -> Any:
    """The tree with this shape and these tensors: the inverse of `_flatten`."""
    if shape == "tensor":
        return tensors[name]
    ((kind, inner),) = shape.items()
    if kind == "dict":
        return {key: _unflatten(value, f"{name}.{key}", tensors) for key, value in inner.items()}
    if kind == "value":
        return inner
    parts = [_unflatten(value, f"{name}.{i}", tensors) for i, value in enumerate(inner)]
    return tuple(parts) if kind == "tuple" else parts
