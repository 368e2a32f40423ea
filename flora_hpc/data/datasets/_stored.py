"""What datasets on disk share: where they lie, what is said when one is missing or damaged, and files of images as `Images`."""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import Field

from flora_hpc import extras
from flora_hpc.data.datasets._catalog import DatasetCard
from flora_hpc.data.datasets._files import read
from flora_hpc.data.images import Column, Dataset, DatasetOptions, Images, Ints, Raw, assemble, join, stamp
from flora_hpc.errors import UserError, at_home

VARIABLE, DEFAULT_ROOT = "FLORA_HPC_DATA", "~/.cache/flora_hpc/data"

ReadPart = Callable[
    [DatasetCard, Path, str], tuple[Images, tuple[str, ...]]
]  # (a set, its root, an official part): images, class names


class Options(DatasetOptions):
    """Where it lies."""

    root: Path | None = Field(
        None, description=f"folder that holds the dataset's own, as torchvision has it; by default {VARIABLE} or {DEFAULT_ROOT}"
    )


def folder(root: Path | None) -> Path:
    """The folder below which every dataset has its own."""
    return at_home(root or os.environ.get(VARIABLE) or DEFAULT_ROOT, f"set {VARIABLE} or data.root to a folder")


def missing(facts: DatasetCard, root: Path) -> str | None:
    """What is not there and how to get it, in one sentence; None when the set is there. Only looks, and reads nothing."""
    for need in facts.needs:
        if not any((root / place).exists() for place in need.split(" or ")):
            cure = facts.by_hand.format(root=root) or f"run 'flora-hpc data fetch {facts.name}' on a machine with a network"
            return f"{facts.name}: there is no {need} in {root}; {cure}, or set data.root to the folder that has it"
    return None


def unusable(facts: DatasetCard, root: Path, reason: str) -> UserError:
    """The data are there, but they are not what they should be."""
    top = root / Path(facts.needs[0]).parts[0]
    again = "get it anew" if facts.by_hand else f"run 'flora-hpc data fetch {facts.name}' on a machine with a network"
    return UserError(f"{facts.name}: the data in {top} cannot be used: {reason}; remove that folder and {again}")


def build(facts: DatasetCard, read_part: ReadPart, options: Options) -> Dataset:
    """The set of these facts. Raises UserError where it is missing or damaged."""
    root = folder(options.root)
    sentence = missing(facts, root)
    if sentence is not None:
        raise UserError(sentence)
    extras.need(f"data.name: {facts.name}", *facts.packages)
    parts: dict[str, Images] = {}
    names: tuple[str, ...] = ()
    for part in (*facts.train, *facts.test):
        try:
            parts[part], found = read_part(facts, root, part)
        except Exception as error:  # unpickling or parsing a damaged file may raise anything
            reason = str(error).partition(" You can ")[0] or type(error).__name__  # torchvision adds what to do in Python
            raise unusable(facts, root, f"part '{part}': {' '.join(reason.split())}") from error
        names = names or found
        _check(facts, root, part, parts[part].labels, found, names)
    train, test = (join([parts[part] for part in side]) if side else None for side in (facts.train, facts.test))
    assert train is not None
    return assemble(options, facts.name, names, tuple(map(facts.wording, names)), train, test, facts.caption)


def _check(facts: DatasetCard, root: Path, part: str, labels: Ints, found: Sequence[str], names: Sequence[str]) -> None:
    """A folder too few would shift the labels of all others, so that is refused."""
    if len(found) != facts.num_classes:
        raise unusable(facts, root, f"part '{part}' has {len(found)} classes, it must have {facts.num_classes}")
    if found != names:
        raise unusable(facts, root, f"part '{part}' names other classes than the parts before it")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(names):
        raise unusable(facts, root, f"part '{part}' has no images, or labels beyond its {len(names)} classes")


def from_files(samples: Iterable[tuple[str | Path, int]], root: Path) -> Images:
    """Files of images with their labels, in the order of their paths: a folder is listed in another order on every machine."""
    ordered = sorted((str(path), int(label)) for path, label in samples)
    paths = [path for path, _ in ordered]
    return Images(
        np.array([label for _, label in ordered], np.int64),
        lambda rows: [read(Path(paths[row])) for row in rows],
        lambda row: paths[row],
        {"path": partial(_below, paths, root)},
        lambda: stamp(map(Path, paths)),
    )


def from_pixels(pixels: Sequence[Raw], labels: Ints, place: str, files: Sequence[Path]) -> Images:
    """Images that are in memory; `files` are those they were read from."""
    return Images(
        labels, lambda rows: [pixels[row] for row in rows], lambda row: f"{place}[{row}]", stamp=partial(stamp, files, place)
    )


def _below(paths: Sequence[str], root: Path) -> Column:
    """The paths as seen from the root, which are the same on every machine."""
    return np.array([Path(path).relative_to(root).as_posix() for path in paths], object)
