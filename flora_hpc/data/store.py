"""Features kept on disk: computed once, mapped into memory by every later run.

    FOLDER/features/<key>.safetensors                    the features of all images
    FOLDER/features/<key>.<maker>.blocks/<n>.safetensors those of one block of them, while others are missing
    FOLDER/images/<stamp>                                the digest of images whose files have these sizes and times
    FOLDER/damage/<digest>.json                          which of the images with this digest cannot be decoded

A key is a digest of everything that decides a feature: image bytes, image tower, preprocessing and precision. Every file is written
under another name and then renamed, so that a job that is killed, or another one at work on the same, leaves nothing half written.
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
PATIENCE_SECONDS = 120.0  # until every node must see what another one wrote: NFS trusts its memory of a folder for up to 60
STALE_SECONDS = 86400.0  # after which nobody can still be writing a file

T = TypeVar("T")
Damage = dict[int, str]  # image -> why it cannot be decoded


@dataclass(frozen=True)
class Stored:
    """Features of a set of images, in its order."""

    values: torch.Tensor  # (num_images, embed_dim), mapped from the file; NaN where an image cannot be decoded
    damaged: Damage
    facts: Mapping[str, str]  # where they come from


@dataclass(frozen=True)
class Entry:
    """One set of features in the store, for people."""

    key: str
    path: Path  # a file; the folder of its blocks while it is not complete
    num_bytes: int
    used: float  # when it was last used or written, in seconds since 1970
    complete: bool
    facts: Mapping[str, str]


class Store:
    """A folder of features. Any number of jobs may read and write it at once."""

    def __init__(self, folder: Path, maker: str = "here") -> None:
        """Nothing is looked at or made yet: who finds all features there needs no right to write.

        `maker` names what else decides the last bits of a feature: blocks are joined only with those that were made alike.
        """
        self.folder, self._maker = folder, hashlib.blake2b(maker.encode(), digest_size=4).hexdigest()

    def find(self, key: str, num_images: int) -> Stored | None:
        """The features under `key`, if all of them are there and can be read."""
        path = self.place(key)
        found = read(path)
        if found is None or len(found[0]) != num_images:
            return None
        with suppress(OSError):  # another user's
            os.utime(path)  # last used now
            for leftover in path.parent.glob(f"{key}.*.blocks"):  # of a job that was killed when it had joined them
                shutil.rmtree(leftover, ignore_errors=True)
        return Stored(found[0], _damage(found[1]), found[1])

    def add_block(self, key: str, number: int, values: torch.Tensor, damaged: Damage) -> None:
        """Keep block `number`: its features (num_images_of_it, embed_dim), and which of all images are damaged."""
        folder, data = self._blocks(key), save({"features": values.contiguous()}, {"damaged": json.dumps(damaged)})
        with _told(self.folder):
            while read(self.place(key)) is None:
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    write_whole(folder / f"{number}.safetensors", data)
                    return
                except FileNotFoundError:  # another job completed these features at this moment, and cleared up
                    continue
                except FileExistsError:  # the same, while `mkdir` looked; or a file is in the way
                    if folder.is_file() or not folder.parent.is_dir():
                        raise

    def blocks(self, key: str, sizes: Sequence[int]) -> set[int]:
        """Blocks that are there, of which block i has to hold `sizes[i]` images."""
        folder, found = self._blocks(key), set()
        for path in folder.glob("[0-9]*.safetensors") if folder.is_dir() else ():
            number, block = int(path.stem), read(path)
            if number < len(sizes) and block is not None and len(block[0]) == sizes[number]:
                found.add(number)
        return found

    def complete(self, key: str, sizes: Sequence[int], facts: Mapping[str, str]) -> None:
        """Join all blocks, written by ranks on any node, into one file. Raises UserError when this node does not see them."""
        self._until_seen(lambda: self._join(key, sizes, facts) or None)

    def wait(self, key: str, num_images: int) -> Stored:
        """The features that another rank has just completed. Raises UserError when this node does not come to see them."""
        return self._until_seen(lambda: self.find(key, num_images))

    def _join(self, key: str, sizes: Sequence[int], facts: Mapping[str, str]) -> bool:
        found = [read(self._blocks(key) / f"{number}.safetensors") for number in range(len(sizes))]
        blocks = [block for block in found if block is not None]
        if len(blocks) == len(sizes):
            damaged = {row: why for _, of_block in blocks for row, why in _damage(of_block).items()}
            with _told(self.folder):
                join(self.place(key), [values for values, _ in blocks], {**facts, "damaged": json.dumps(damaged)})
        elif self.find(key, sum(sizes)) is None:  # otherwise another job has just done it
            return False
        shutil.rmtree(self._blocks(key), ignore_errors=True)
        self._sweep()
        return True

    def _sweep(self) -> None:
        """Remove what writers that were killed have left."""
        for path in self.folder.glob("*/.*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()

    def _until_seen(self, look: Callable[[], T | None]) -> T:
        until = time.monotonic() + PATIENCE_SECONDS
        while (found := look()) is None:
            if time.monotonic() > until:
                raise UserError(
                    f"features.store: {self.folder} is not one folder for all nodes, or was emptied; set it to one they share"
                )
            time.sleep(0.2)
        return found

    def entries(self) -> list[Entry]:
        """All features, those used last first. Files that disappear meanwhile are left out."""
        found = []
        for path in (self.folder / "features").glob("*"):
            if path.suffix in (".safetensors", ".blocks") and not path.name.startswith("."):
                with suppress(FileNotFoundError):
                    found.append(_entry(path))
        return sorted(found, key=lambda entry: -entry.used)

    def digest(self, stamp: str) -> str:
        """The digest of images whose files had this stamp when it was remembered; empty when it was not."""
        try:
            return (self.folder / "images" / stamp).read_text()
        except OSError:
            return ""

    def remember(self, stamp: str, digest: str) -> None:
        """Note the digest of images whose files have this stamp; where nothing can be written, it is worked out again next time."""
        with suppress(OSError):
            (self.folder / "images").mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / "images" / stamp, digest.encode())

    def damage(self, digest: str) -> Damage | None:
        """Which of the images with this digest cannot be decoded; None when they have not all been looked at."""
        try:
            return {int(row): why for row, why in json.loads((self.folder / "damage" / f"{digest}.json").read_text()).items()}
        except (OSError, ValueError):
            return None

    def note_damage(self, digest: str, damaged: Damage) -> None:
        """All images with this digest have been looked at, and these cannot be decoded; see `remember`."""
        with suppress(OSError):
            (self.folder / "damage").mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / "damage" / f"{digest}.json", json.dumps(damaged).encode())

    def place(self, key: str) -> Path:
        """The file of complete features."""
        return self.folder / "features" / f"{key}.safetensors"

    def _blocks(self, key: str) -> Path:
        return self.folder / "features" / f"{key}.{self._maker}.blocks"


def _entry(path: Path) -> Entry:
    files = [file.stat() for file in ([*path.iterdir()] if path.is_dir() else [path])]
    used = max((file.st_mtime for file in files), default=path.stat().st_mtime)
    facts = (read(path) or (None, {}))[1] if path.is_file() else {}
    return Entry(path.name.partition(".")[0], path, sum(file.st_size for file in files), used, path.is_file(), facts)


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file that is either there with all of `data` or not there, whenever this process or its machine dies."""
    return _rename_into(path, [data])


def join(path: Path, parts: Sequence[torch.Tensor], facts: Mapping[str, str]) -> None:
    """Write `parts` (n_i, embed_dim), one after the other, as one safetensors file without holding them in memory."""
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
    """Features mapped from a file, and its facts; None when there is no such file, or it is not whole."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("features"), dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return None


def is_sound(path: Path) -> bool:
    """Whether the features in a file are those that were written: compares all of its content with its digest."""
    found = read(path)
    return found is not None and hashlib.blake2b(_bytes(found[0]), digest_size=16).hexdigest() == found[1].get("content")


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
def _told(folder: Path) -> Iterator[None]:
    """What the file system refuses becomes a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"features.store: {folder} cannot be written ({reason(error)}); "
            "set features.store to a folder with room that all nodes share, or to none"
        ) from None


def remove(entry: Entry) -> None:
    """Remove features. A run on this machine that has mapped them goes on; on NFS, one of another machine does not."""
    if entry.path.is_dir():
        shutil.rmtree(entry.path, ignore_errors=True)
    else:
        entry.path.unlink(missing_ok=True)
