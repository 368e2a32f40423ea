"""List every image file below folders of classes, once. Dropped files are counted by reason."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flora_hpc.data import kinds
from flora_hpc.data.datasets._files import IMAGE_SUFFIXES
from flora_hpc.data.datasets._leftout import (
    AGAIN,
    ARCHIVE,
    BESIDE,
    FORBIDDEN,
    HIDDEN,
    LOST,
    NO_IMAGE,
    SPECIAL,
    UNUSED,
    LeftOut,
    printable,
)
from flora_hpc.data.images import LOOKERS, Ints
from flora_hpc.errors import UserError, reason
from flora_hpc.filekinds import HEAD_BYTES, kind_of

FOLDER, FILE = "folder", "file"
SYSTEM = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Files:
    """The image files of one part of a dataset, in the order of their folders and names."""

    folder: Path
    paths: list[str]  # relative to `folder`; the first name is the class
    labels: Ints  # (num_files,)
    inodes: npt.NDArray[np.uint64]  # (num_files, 2): device and inode; equal for two names of one file
    is_linked: npt.NDArray[np.bool_]  # (num_files,) whether the path contains a link

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: Ints) -> "Files":
        """The files of `rows`."""
        return Files(self.folder, [self.paths[row] for row in rows], self.labels[rows], self.inodes[rows], self.is_linked[rows])


class _File(NamedTuple):
    folder: str
    name: str
    device: int
    inode: int
    is_linked: bool

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.name}"


def walk(folder: Path, classes: Sequence[str], left_out: LeftOut) -> Files:
    """List the image files below each class's folder. Follows links, but not upwards, and not twice into one folder.

    Raises UserError for a folder that cannot be read.
    """
    files: list[_File] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        class_files = sorted(_images(list(_below(f"{folder}/{name}", left_out)), left_out))
        files += class_files
        labels += [label] * len(class_files)
    start = len(str(folder)) + 1
    return Files(
        folder,
        [file.path[start:] for file in files],
        np.array(labels, np.int64),
        np.array([(file.device, file.inode) for file in files], np.uint64).reshape(-1, 2),
        np.array([file.is_linked for file in files], bool),
    )


def _below(top: str, left_out: LeftOut) -> Iterator[_File]:
    """Every regular file below `top`, and broken links with the suffix of an image.

    Real folders come before links to folders, so that a file keeps the path without a link.
    """
    root = os.path.realpath(left_out.root)
    real = os.path.realpath(top)
    is_linked = real != os.path.normpath(f"{root}/{os.path.relpath(top, left_out.root)}")  # the class or its part may be a link
    folders = [(top, real, is_linked)]
    links: list[tuple[str, str, bool]] = []
    visited = set()
    if _is_above(real, root):
        left_out.add(AGAIN, top)
        return
    while folders or links:
        folder, real, is_linked = folders.pop() if folders else heappop(links)
        if real in visited:
            left_out.add(AGAIN, folder)
            continue
        visited.add(real)
        listing = entries(folder)
        device = os.stat(folder).st_dev  # noqa: PTH116 -- a Path for every folder costs more than the call
        for entry in listing:
            if is_hidden(entry.name):
                left_out.add(HIDDEN, entry.path)
            elif (kind := _kind(entry)) == FOLDER and not entry.is_symlink():
                folders.append((entry.path, f"{real}/{entry.name}", is_linked))
            elif kind == FOLDER:
                target = os.path.realpath(entry.path)
                if _is_above(target, real) or _is_above(target, root):
                    left_out.add(AGAIN, entry.path)
                else:
                    heappush(links, (entry.path, target, True))
            elif kind == FILE and not entry.is_symlink():
                yield _File(folder, entry.name, device, entry.inode(), is_linked)
            elif kind == FILE or (kind == LOST and entry.name.lower().endswith(IMAGE_SUFFIXES)):  # a missing image is damaged
                status = entry.stat(follow_symlinks=kind == FILE)
                yield _File(folder, entry.name, status.st_dev, status.st_ino, True)
            else:
                left_out.add(kind, entry.path)


def _kind(entry: os.DirEntry[str]) -> str:
    """The kind of an entry or of its link's target: FOLDER, FILE, or the reason why it is neither."""
    try:
        if entry.is_dir():
            return FOLDER
        if entry.is_file():
            return FILE
        entry.stat()
    except OSError:  # the target is missing, or links form a circle
        return LOST
    return SPECIAL


def _is_above(folder: str, other: str) -> bool:
    """Whether real folder `folder` is `other`, or contains it."""
    return other == folder or other.startswith(folder.rstrip("/") + "/")


def folders_in(path: Path) -> list[str]:
    """The names of the folders in `path` that may be classes, sorted."""
    return [entry.name for entry in entries(path) if not is_hidden(entry.name) and _kind(entry) == FOLDER]


def has_images(path: Path) -> bool:
    """Whether a folder itself holds files with the suffix of an image."""
    return any(entry.name.lower().endswith(IMAGE_SUFFIXES) and _kind(entry) != FOLDER for entry in entries(path))


def is_hidden(name: str) -> bool:
    """Whether a name belongs to the operating system, such as macOS's ._photo.jpg, and not to the data."""
    return name.startswith(".") or name.lower() in SYSTEM


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name. Raises UserError for a folder that cannot be read."""
    try:
        with os.scandir(folder) as listing:
            return sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        why = reason(error)
        raise UserError(f"data.path: {printable(str(folder))} cannot be read ({why}); make it readable, or take it out") from None


def count_unused(path: Path, parts: Sequence[Path], left_out: LeftOut) -> None:
    """Count the files beside the folders of classes, and in folders of `path` that are not in `parts`."""
    files = []
    for folder in dict.fromkeys([path, *parts]):
        for entry in entries(folder):
            if is_hidden(entry.name):
                left_out.add(HIDDEN, entry.path)
            elif (kind := _kind(entry)) == FILE:
                files.append(entry.path)
            elif kind != FOLDER:
                left_out.add(kind, entry.path)
            elif folder == path and path not in parts and Path(entry.path) not in parts:
                left_out.add(UNUSED, entry.path, sum(len(names) for _, _, names in os.walk(entry.path)))
    for file, why in zip(files, no_image_reasons(files), strict=True):
        left_out.add(why or BESIDE, file)


def _images(files: list[_File], left_out: LeftOut) -> list[_File]:
    """The files that are images by their suffix, else by their first bytes; counts the others."""
    images = []
    for file, why in zip(files, no_image_reasons([file.path for file in files]), strict=True):
        if why is None:
            images.append(file)
        else:
            left_out.add(why, file.path)
    return images


def no_image_reasons(paths: Sequence[str]) -> list[str | None]:
    """Why each file is no image that can be decoded; None for images by their suffix, else by their first bytes."""
    undecided = [path for path in paths if not path.lower().endswith(IMAGE_SUFFIXES)]
    if not undecided:
        return [None] * len(paths)
    with ThreadPoolExecutor(LOOKERS, "first bytes") as lookers:  # the file system takes most of the time
        reasons = dict(zip(undecided, lookers.map(no_image_reason, undecided), strict=True))
    return [reasons.get(path) for path in paths]


def no_image_reason(path: str) -> str | None:
    """Why a file, by its first bytes, is no image that can be decoded here; None if it is one."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(HEAD_BYTES)
    except PermissionError:
        return FORBIDDEN
    except OSError as error:
        why = reason(error)
        raise UserError(f"data.path: {printable(path)} cannot be read now ({why}); look after the file system, try again") from None
    name = kinds.image_format(head)
    if name is not None:
        return kinds.no_decoder(name)
    kind = kind_of(head)
    return ARCHIVE if kind is not None and kind.is_archive else NO_IMAGE


def drop_duplicates(parts: Sequence[Files], left_out: LeftOut) -> list[Files]:
    """Keep one path of every file: a path without links before others, then the first by name.

    Raises UserError where one file has two classes, or is a training and a test image.
    """
    part_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    rows = np.concatenate([np.arange(len(part)) for part in parts])
    inodes, is_linked = (np.concatenate([getattr(part, name) for part in parts]) for name in ("inodes", "is_linked"))
    order = np.lexsort((rows, part_of, is_linked, inodes[:, 1], inodes[:, 0]))
    keep, conflicts = np.ones(len(order), bool), []
    for place in np.flatnonzero((inodes[order[1:]] == inodes[order[:-1]]).all(1)):
        first, second = ((parts[part_of[row]], rows[row]) for row in order[place : place + 2])
        if not _is_one_file(first, second):
            continue
        if first[0] is second[0] and first[0].labels[first[1]] == second[0].labels[second[1]]:
            keep[order[place + 1]] = False
            left_out.add(AGAIN, _path(second))
        else:
            conflicts.append((first, second))
    if conflicts:
        _refuse(conflicts, left_out)
    is_in = [part_of == number for number in range(len(parts))]
    return [part if keep[rows_in].all() else part.take(rows[rows_in & keep]) for part, rows_in in zip(parts, is_in, strict=True)]


_Row = tuple[Files, int]


def _path(file: _Row) -> str:
    return f"{file[0].folder}/{file[0].paths[file[1]]}"


def _is_one_file(first: _Row, second: _Row) -> bool:
    """Whether two rows are one file. Calls `stat`, since some file systems list inodes that are not unique."""
    try:
        first_status, second_status = (os.stat(_path(file)) for file in (first, second))  # noqa: PTH116
    except OSError:
        return False
    is_linked = any(files.is_linked[row] for files, row in (first, second))
    return os.path.samestat(first_status, second_status) and (is_linked or first_status.st_nlink > 1)


def _refuse(conflicts: list[tuple[_Row, _Row]], left_out: LeftOut) -> None:
    """Raise UserError with the first two paths of one file."""
    first, second = conflicts[0]
    what = "has two classes" if first[0] is second[0] else "would be trained on and tested with"
    raise UserError(
        f"data.path: {left_out.shown(_path(first))} and {left_out.shown(_path(second))} are links to one file, which {what} "
        f"({len(conflicts):,} in all); remove one of the two, or make a copy where both are meant"
    )
