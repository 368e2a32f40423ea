"""Write and read checkpoints: one file per saved round, and one file per rank that keeps optimizer states of clients.

    checkpoint/round-000012.safetensors          adapter, server state, a round that is not tested yet
    checkpoint/round-000012-rank-3.safetensors   optimizers of the clients that rank 3 trained

A file is complete or missing: it is written under another name, synced and renamed. The files of the ranks are written before the
file of the round, which lists their names. Each file has a checksum of all its numbers. The two newest rounds are kept, so that a
damaged file costs one round.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from flora_hpc.data.images import Ints
from flora_hpc.errors import UserError, reason
from flora_hpc.optimizers import Kept
from flora_hpc.records import disk
from flora_hpc.records.known import RoundRecord
from flora_hpc.records.schema import CLIENTS, RANKS, ROUNDS, Rows

FORMAT = "2"
NUM_KEPT = 2  # rounds
TABLES = {"row": ROUNDS, "ranks": RANKS, "clients": CLIENTS}  # parts of a RoundRecord
NAME = re.compile(r"round-(\d+)\.safetensors")

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a federation after a round."""

    round: int
    adapter: torch.Tensor  # (num_params,) float32
    server: Any  # None, a tensor, or a tuple, list or dict of these
    untested: RoundRecord | None = None  # this round's record, when the round is tested during the next round
    parts: tuple[str, ...] = field(default=())  # names of the files with optimizers
    identity: Mapping[str, str] = field(default_factory=dict)  # name of each input (data, weights, ...) -> its digest
    run: str = ""  # the digest of the run's configuration; set by `read`


class DamagedError(Exception):
    """The reason why a file cannot be used."""


def path(folder: Path, number: int) -> Path:
    """The file of a round."""
    return folder / f"round-{number:06d}.safetensors"


def write(folder: Path, checkpoint: Checkpoint, run: str) -> None:
    """Write the file of a round of the run with digest `run`, then remove all but the `NUM_KEPT` newest rounds.

    Raises UserError when the file cannot be written; then no older file is removed.
    """
    tensors: Tensors = {"adapter": checkpoint.adapter.cpu()}
    tree = _flatten(checkpoint.server, "server", tensors)
    if checkpoint.untested is not None:
        for name in TABLES:
            rows = getattr(checkpoint.untested, name).tobytes()
            tensors[f"untested.{name}"] = torch.from_numpy(np.frombuffer(rows, np.uint8).copy())
    facts = {"round": str(checkpoint.round), "run": run, "server": json.dumps(tree), "shards": json.dumps(checkpoint.parts)}
    facts["identity"] = json.dumps(dict(checkpoint.identity))
    _write(path(folder, checkpoint.round), tensors, facts)
    prune(folder, checkpoint.round, NUM_KEPT)


def prune(folder: Path, last: int, num_kept: int) -> None:
    """Remove all rounds before the `num_kept` newest rounds up to round `last`."""
    newest_rounds = [number for number in _rounds(folder) if number <= last][:num_kept]
    for file in folder.glob("round-*") if newest_rounds else ():
        if int(file.name.split("-")[1].split(".")[0]) < newest_rounds[-1]:  # any rank may be writing a newer round
            file.unlink(missing_ok=True)


def write_optimizers(folder: Path, number: int, rank: int, groups: Iterable[Kept]) -> str:
    """Write one rank's optimizer states, by client, and return the name of the file. Raises UserError like `write`."""
    file, groups = folder / f"round-{number:06d}-rank-{rank}.safetensors", list(groups)
    tensors = {"clients": torch.tensor([client for group in groups for client in group.clients.tolist()], dtype=torch.int64)}
    for i, parts in enumerate(zip(*(group.state for group in groups), strict=True)):
        tensors[str(i)] = torch.cat([part.cpu() for part in parts])
    _write(file, tensors, {"round": str(number)})
    return file.name


def read(data: bytes) -> Checkpoint:
    """The checkpoint in the bytes of a file that `write` wrote. Raises DamagedError for other bytes."""
    tensors, facts = _checked(data)
    try:
        untested = None
        if "untested.row" in tensors:
            rows = {name: _rows(tensors[f"untested.{name}"], dtype) for name, dtype in TABLES.items()}
            untested = RoundRecord(**rows)
        server = _unflatten(json.loads(facts["server"]), "server", tensors)
        parts = json.loads(facts["shards"])
        identity = json.loads(facts.get("identity", "{}"))  # runs before schema 5 have no identity
        return Checkpoint(int(facts["round"]), tensors["adapter"], server, untested, tuple(parts), identity, facts["run"])
    except (LookupError, ValueError) as error:
        raise DamagedError(f"it lacks {error}") from None


def read_optimizers(folder: Path, files: Iterable[str], groups: Sequence[Ints]) -> list[Kept]:
    """The optimizer states of these groups of clients. Raises UserError when a file cannot be read, or a client is in no file."""
    places = {client: (group, row) for group, clients in enumerate(groups) for row, client in enumerate(clients.tolist())}
    states: list[tuple[torch.Tensor, ...]] = [()] * len(groups)
    for name in files:
        try:
            tensors, _ = _checked((folder / name).read_bytes())
        except (OSError, DamagedError) as error:
            raise UserError(f"{folder / name}: cannot be used ({error}); all nodes must see the files of the run") from None
        parts = [tensors[str(i)] for i in range(len(tensors) - 1)]
        for row, client in enumerate(tensors["clients"].tolist()):
            if client not in places:
                continue
            group, group_row = places.pop(client)
            states[group] = states[group] or tuple(part.new_zeros(len(groups[group]), *part.shape[1:]) for part in parts)
            for state, part in zip(states[group], parts, strict=True):
                state[group_row] = part[row]
    if places:
        raise UserError(f"{folder}: keeps no optimizer of client {min(places)}; start a new run with another --out")
    return [Kept(clients, state) for clients, state in zip(groups, states, strict=True)]


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
                _checked((folder / part).read_bytes())
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


def _write(file: Path, tensors: Tensors, facts: dict[str, str]) -> None:
    """Write a complete file or none."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    facts = facts | {"format": FORMAT}
    part = file.with_suffix(".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(save(tensors, facts | {"checksum": _checksum(tensors, facts)}))
        disk.commit(part, file)
    except OSError as error:
        with suppress(OSError):  # on a read-only disk no file can be removed
            part.unlink()
        raise UserError(
            f"{file}: cannot be written ({reason(error)}); make room or make it writable, and go on with --resume"
        ) from None


def _checked(data: bytes) -> tuple[Tensors, dict[str, str]]:
    """Tensors and facts (metadata) of a file. Raises DamagedError unless its checksum is that of its content."""
    try:
        tensors = load(data)
        facts: dict[str, str] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        checksum = facts.pop("checksum")
    except (SafetensorError, LookupError, ValueError) as error:
        raise DamagedError(f"it is no checkpoint: {' '.join(str(error).split())}") from None
    if facts.get("format") != FORMAT:
        raise DamagedError(f"its format is {facts.get('format')}, and here it is {FORMAT}")
    if checksum != _checksum(tensors, facts):
        raise DamagedError("its checksum is not that of its content")
    return tensors, facts


def _checksum(tensors: Tensors, facts: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(json.dumps(sorted(facts.items())).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
