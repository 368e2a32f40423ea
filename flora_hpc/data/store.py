"""A store of features on disk: computed once, mapped into memory by every later run.

    FOLDER/features/<key>.safetensors                    the features of all images
    FOLDER/features/<key>.<maker>.blocks/<n>.safetensors the features of block n, while other blocks are missing
    FOLDER/images/<stamp>                                the digest of images whose files have these sizes and times
    FOLDER/damage/<digest>.json                          the images of this digest that cannot be decoded

A key is a digest of everything that decides a feature: image bytes, image tower, preprocessing and precision. Every file is written
under a temporary name and then renamed. So a killed job, or a second job that writes the same file, leaves no half-written file.
"""

import hashlib
import json
import os
import secrets
import shutil
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from flora_hpc.errors import UserError, reason

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PATIENCE_SECONDS = 120.0  # grace period until a node must see files of other nodes: NFS caches a folder for up to 60 s
STALE_SECONDS = 86400.0  # a temporary file older than this has no living writer

T = TypeVar("T")
Damage = dict[int, str]  # image -> why it cannot be decoded


@dataclass(frozen=True)
class Stored:
    """Features of a set of images, in the order of the images."""

    values: torch.Tensor  # (num_images, embed_dim), mapped from the file; NaN where an image cannot be decoded
    damaged: Damage
    facts: Mapping[str, str]  # dataset, model, versions and device that made them


@dataclass(frozen=True)
class Entry:
    """One set of features in the store, as `flora-hpc data cache` lists it."""

    key: str
    path: Path  # a file, or the folder of blocks until the set is complete
    num_bytes: int
    used: float  # when it was last used or written, in seconds since 1970
    complete: bool
    facts: Mapping[str, str]


class Store:
    """A folder of features. Any number of jobs may read and write it at once."""

    def __init__(self, folder: Path, maker: str = "here") -> None:
        """Touch nothing yet: a run that finds all its features needs no right to write.

        `maker` names versions and device, which decide the last bits of a feature. Only blocks of the same maker are joined.
        """
        self.folder, self._maker = folder, hashlib.blake2b(maker.encode(), digest_size=4).hexdigest()

    def find(self, key: str, num_images: int) -> Stored | None:
        """The features under `key`; None unless all `num_images` of them can be read."""
        path = self.place(key)
        content = read(path)
        if content is None or len(content[0]) != num_images:
            return None
        values, facts = content
        with suppress(OSError):  # the file of another user
            os.utime(path)  # last used now
            for leftover in path.parent.glob(f"{key}.*.blocks"):  # of a job that was killed after it had joined its blocks
                shutil.rmtree(leftover, ignore_errors=True)
        return Stored(values, _damage(facts), facts)

    def add_block(self, key: str, number: int, values: torch.Tensor, damaged: Damage) -> None:
        """Write block `number`: its features (num_images_of_it, embed_dim) and its damaged images by row of the dataset."""
        folder, data = self._block_folder(key), save({"features": values.contiguous()}, {"damaged": json.dumps(damaged)})
        with _write_errors(self.folder):
            while read(self.place(key)) is None:
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    write_whole(folder / f"{number}.safetensors", data)
                    return
                except FileNotFoundError:  # another job has just joined the blocks and removed the folder
                    continue
                except FileExistsError:  # the same during `mkdir`; or a file is in the way
                    if folder.is_file() or not folder.parent.is_dir():
                        raise

    def blocks(self, key: str, sizes: Sequence[int]) -> set[int]:
        """Numbers of the blocks in the store. A block i that has not `sizes[i]` images does not count."""
        folder, numbers = self._block_folder(key), set()
        for path in folder.glob("[0-9]*.safetensors") if folder.is_dir() else ():
            number, block = int(path.stem), read(path)
            if number < len(sizes) and block is not None and len(block[0]) == sizes[number]:
                numbers.add(number)
        return numbers

    def complete(self, key: str, sizes: Sequence[int], facts: Mapping[str, str]) -> None:
        """Join the blocks that all ranks wrote into one file. Raises UserError when this node cannot see all blocks."""
        self._until_seen(lambda: self._join(key, sizes, facts) or None)

    def wait(self, key: str, num_images: int) -> Stored:
        """Wait for the features that another rank has just completed. Raises UserError when this node cannot see them."""
        return self._until_seen(lambda: self.find(key, num_images))

    def _join(self, key: str, sizes: Sequence[int], facts: Mapping[str, str]) -> bool:
        """Join the blocks, unless another job has done it; False when blocks are missing."""
        contents = [read(self._block_folder(key) / f"{number}.safetensors") for number in range(len(sizes))]
        blocks = [content for content in contents if content is not None]
        if len(blocks) == len(sizes):
            damaged = {row: why for _, facts in blocks for row, why in _damage(facts).items()}
            with _write_errors(self.folder):
                join(self.place(key), [values for values, _ in blocks], {**facts, "damaged": json.dumps(damaged)})
        elif self.find(key, sum(sizes)) is None:  # otherwise another job has just joined them
            return False
        shutil.rmtree(self._block_folder(key), ignore_errors=True)
        self._remove_stale()
        return True

    def _remove_stale(self) -> None:
        """Remove the temporary files of writers that were killed."""
        for path in self.folder.glob("*/.*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()

    def _until_seen(self, read: Callable[[], T | None]) -> T:
        """Repeat `read` until its result is not None. Raises UserError after `PATIENCE_SECONDS`."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (result := read()) is None:
            if time.monotonic() > deadline:
                raise UserError(
                    f"features.store: {self.folder} is not one folder for all nodes, or was emptied; set it to one they share"
                )
            time.sleep(0.2)
        return result

    def entries(self) -> list[Entry]:
        """All sets of features, the last used first. A file that disappears meanwhile is dropped."""
        entries = []
        for path in (self.folder / "features").glob("*"):
            if path.suffix in (".safetensors", ".blocks") and not path.name.startswith("."):
                with suppress(FileNotFoundError):
                    entries.append(_entry(path))
        return sorted(entries, key=lambda entry: -entry.used)

    def digest(self, stamp: str) -> str:
        """The digest of the images whose files have this stamp; empty when the store has none."""
        try:
            return (self.folder / "images" / stamp).read_text()
        except OSError:
            return ""

    def remember(self, stamp: str, digest: str) -> None:
        """Write the digest of the images whose files have this stamp. If that fails, the next run computes the digest again."""
        with suppress(OSError):
            (self.folder / "images").mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / "images" / stamp, digest.encode())

    def damage(self, digest: str) -> Damage | None:
        """The images of this digest that cannot be decoded; None until all of them were decoded once."""
        try:
            return {int(row): why for row, why in json.loads((self.folder / "damage" / f"{digest}.json").read_text()).items()}
        except (OSError, ValueError):
            return None

    def note_damage(self, digest: str, damaged: Damage) -> None:
        """Write the damage of all images with this digest. If that fails, the next run decodes them again."""
        with suppress(OSError):
            (self.folder / "damage").mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / "damage" / f"{digest}.json", json.dumps(damaged).encode())

    def place(self, key: str) -> Path:
        """The file of a complete set of features."""
        return self.folder / "features" / f"{key}.safetensors"

    def _block_folder(self, key: str) -> Path:
        return self.folder / "features" / f"{key}.{self._maker}.blocks"


def _entry(path: Path) -> Entry:
    files = [file.stat() for file in ([*path.iterdir()] if path.is_dir() else [path])]
    used = max((file.st_mtime for file in files), default=path.stat().st_mtime)
    facts = (read(path) or (None, {}))[1] if path.is_file() else {}
    return Entry(path.name.partition(".")[0], path, sum(file.st_size for file in files), used, path.is_file(), facts)


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file whole or not at all, whenever this process or its machine dies."""
    return _rename_into(path, [data])


def join(path: Path, parts: Sequence[torch.Tensor], facts: Mapping[str, str]) -> None:
    """Write `parts` (n_i, embed_dim) as one safetensors file, one part after the other, without a copy of all in memory."""
    shape = [sum(map(len, parts)), parts[0].shape[1]]
    dtype = {torch.float32: "F32", torch.bfloat16: "BF16"}[parts[0].dtype]
    size = shape[0] * shape[1] * parts[0].element_size()
    content = hashlib.blake2b(digest_size=16)
    for part in parts:
        content.update(_bytes(part))
    header = {
        "__metadata__": {**facts, "content": content.hexdigest()},
        "features": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    _rename_into(path, [struct.pack("<Q", len(text)) + text, *map(_bytes, parts)])


def read(path: Path) -> tuple[torch.Tensor, dict[str, str]] | None:
    """Features mapped from a file, and the facts in its header; None when the file is missing or incomplete."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("features"), dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return None


def is_sound(path: Path) -> bool:
    """Whether the features in a file are as written: compares all of its content with the digest in its header."""
    content = read(path)
    return content is not None and hashlib.blake2b(_bytes(content[0]), digest_size=16).hexdigest() == content[1].get("content")


def _bytes(values: torch.Tensor) -> memoryview:
    return memoryview(values.contiguous().view(torch.uint8).numpy()).cast("B")  # type: ignore[arg-type]


def _damage(facts: Mapping[str, str]) -> Damage:
    return {int(row): why for row, why in json.loads(facts.get("damaged", "{}")).items()}


def _rename_into(path: Path, parts: Iterable[bytes | memoryview]) -> Path:
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError of the file system into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"features.store: {folder} cannot be written ({reason(error)}); "
            "set features.store to a folder with room that all nodes share, or to none"
        ) from None


def remove(entry: Entry) -> None:
    """Remove features. A run on this machine that has mapped them continues; over NFS, a run on another machine fails."""
    if entry.path.is_dir():
        shutil.rmtree(entry.path, ignore_errors=True)
    else:
        entry.path.unlink(missing_ok=True)
