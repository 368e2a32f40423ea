"""Files of tensors with a checksum, written completely or not at all; large tables of rows are written and read in pieces.

They are safetensors files. The checksum covers all numbers and the facts, which are texts by name; it is one of the file's facts.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from flora_hpc.data.images import Ints
from flora_hpc.errors import UserError, reason
from flora_hpc.records import disk

FORMAT = "2"
PIECE_BYTES = 2**25
DTYPES = {"I64": "torch.int64", "F32": "torch.float32"}  # of safetensors, as PyTorch names them

Tensors = dict[str, torch.Tensor]


class DamagedError(Exception):
    """The reason why a file cannot be used."""


def write(file: Path, tensors: Tensors, facts: Mapping[str, str]) -> None:
    """Write tensors and facts. Raises UserError when the disk refuses them."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    facts = {**facts, "format": FORMAT}
    with _complete(file) as part:
        part.write_bytes(save(tensors, facts | {"checksum": _checksum(tensors, facts)}))


def write_rows(file: Path, clients: Ints, width: int, pieces: Iterable[npt.NDArray[np.float32]], facts: Mapping[str, str]) -> None:
    """Write `clients` (num_clients,) and `rows` (num_clients, width), the latter in pieces. Raises UserError like `write`."""
    facts, shape = {**facts, "format": FORMAT}, (len(clients), width)
    digest = _digest(facts)
    with _complete(file) as part, part.open("wb") as stream:
        stream.write(_header(facts | {"checksum": digest.hexdigest()}, *shape))  # as long as the true one, which comes at the end
        digest.update(_describe("clients", "torch.int64", clients.shape))
        digest.update(clients.data)
        stream.write(clients.data)
        digest.update(_describe("rows", "torch.float32", shape))
        for rows in pieces:
            digest.update(rows.data)
            stream.write(rows.data)
        stream.seek(0)
        stream.write(_header(facts | {"checksum": digest.hexdigest()}, *shape))


def read(data: bytes) -> tuple[Tensors, dict[str, str]]:
    """Tensors and facts in the bytes of a file. Raises DamagedError unless its checksum is that of its content."""
    try:
        tensors = load(data)
        facts: dict[str, str] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        checksum = facts.pop("checksum")
    except (SafetensorError, LookupError, ValueError) as error:
        raise _no_checkpoint(error) from None
    _check_format(facts)
    if checksum != _checksum(tensors, facts):
        raise DamagedError("its checksum is not that of its content")
    return tensors, facts


def read_pieces(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a file by name, some rows at a time.

    Raises OSError or DamagedError; a wrong checksum is known only after the last piece.
    """
    with opened(file) as (tensors, facts):
        _check_format(facts)
        checksum = facts.pop("checksum")
        digest = _digest(facts)
        for name in sorted(tensors.keys()):
            rows = tensors.get_slice(name)
            num_rows, *shape = rows.get_shape()
            digest.update(_describe(name, DTYPES[rows.get_dtype()], (num_rows, *shape)))
            step = max(1, PIECE_BYTES // (8 * max(1, math.prod(shape))))
            for first in range(0, num_rows, step):
                piece = rows[first : first + step]
                digest.update(piece.reshape(-1).view(torch.uint8).numpy().data)
                yield name, piece
        if checksum != digest.hexdigest():
            raise DamagedError("its checksum is not that of its content")


@contextmanager
def opened(file: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """An open file, whose tensors can be read one by one, and its facts. Raises OSError or DamagedError; checks no checksum."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors, dict(tensors.metadata() or {})
    except (SafetensorError, LookupError, ValueError) as error:
        raise _no_checkpoint(error) from None


@contextmanager
def _complete(file: Path) -> Iterator[Path]:
    """The path under which `file` is written; it is renamed when it is complete. An OSError becomes a UserError."""
    part = file.with_suffix(".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield part
        disk.commit(part, file)
    except OSError as error:
        with suppress(OSError):  # on a read-only disk no file can be removed
            part.unlink()
        raise UserError(
            f"{file}: cannot be written ({reason(error)}); make room or make it writable, and go on with --resume"
        ) from None


def _header(facts: Mapping[str, str], num_rows: int, width: int) -> bytes:
    """The first bytes of a safetensors file whose data are those of `clients` and then of `rows`."""
    middle, end = 8 * num_rows, (8 + 4 * width) * num_rows
    header = {
        "__metadata__": facts,
        "clients": {"dtype": "I64", "shape": [num_rows], "data_offsets": [0, middle]},
        "rows": {"dtype": "F32", "shape": [num_rows, width], "data_offsets": [middle, end]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that numbers begin at multiples of 8 bytes
    return len(text).to_bytes(8, "little") + text


def _no_checkpoint(error: Exception) -> DamagedError:
    return DamagedError(f"it is no checkpoint: {' '.join(str(error).split())}")


def _check_format(facts: Mapping[str, str]) -> None:
    if facts.get("format") != FORMAT:
        raise DamagedError(f"its format is {facts.get('format')}, and here it is {FORMAT}")


def _checksum(tensors: Tensors, facts: Mapping[str, str]) -> str:
    digest = _digest(facts)
    for name, tensor in sorted(tensors.items()):
        digest.update(_describe(name, str(tensor.dtype), tensor.shape))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(facts: Mapping[str, str]) -> "hashlib.blake2b":
    """A checksum that has seen only the facts."""
    return hashlib.blake2b(json.dumps(sorted(facts.items())).encode(), digest_size=16)


def _describe(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    """What the checksum sees before the numbers of a tensor."""
    return f"{name} {dtype} {tuple(shape)}".encode()
