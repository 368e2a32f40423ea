"""Build datasets that are read from disk: their root, messages for missing or damaged files, and `Images` from files."""

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

# (card, root, official part) -> (images, class names)
ReadPart = Callable[[DatasetCard, Path, str], tuple[Images, tuple[str, ...]]]


class Options(DatasetOptions):
    """The root of the dataset."""

    root: Path | None = Field(
        None, description=f"folder that holds the dataset's own, as torchvision has it; by default {VARIABLE} or {DEFAULT_ROOT}"
    )


def folder(root: Path | None) -> Path:
    """The root: the folder that holds a folder for each dataset."""
    return at_home(root or os.environ.get(VARIABLE) or DEFAULT_ROOT, f"set {VARIABLE} or data.root to a folder")


def missing(card: DatasetCard, root: Path) -> str | None:
    """A sentence with a missing path and how to get it; None if no path is missing. Reads no file."""
    for need in card.needs:
        if not any((root / place).exists() for place in need.split(" or ")):
            cure = card.by_hand.format(root=root) or f"run 'flora-hpc data fetch {card.name}' on a machine with a network"
            return f"{card.name}: there is no {need} in {root}; {cure}, or set data.root to the folder that has it"
    return None


def unusable(card: DatasetCard, root: Path, reason: str) -> UserError:
    """The error for a dataset whose files exist but are wrong."""
    top = root / Path(card.needs[0]).parts[0]
    again = "get it anew" if card.by_hand else f"run 'flora-hpc data fetch {card.name}' on a machine with a network"
    return UserError(f"{card.name}: the data in {top} cannot be used: {reason}; remove that folder and {again}")


def build(card: DatasetCard, read_part: ReadPart, options: Options) -> Dataset:
    """Read the dataset of `card`. Raises UserError where it is missing or damaged."""
    root = folder(options.root)
    sentence = missing(card, root)
    if sentence is not None:
        raise UserError(sentence)
    extras.need(f"data.name: {card.name}", *card.packages)
    parts: dict[str, Images] = {}
    names: tuple[str, ...] = ()
    for part in (*card.train, *card.test):
        try:
            parts[part], part_names = read_part(card, root, part)
        except Exception as error:  # unpickling or parsing a damaged file may raise anything
            reason = str(error).partition(" You can ")[0] or type(error).__name__  # torchvision adds advice for its Python API
            raise unusable(card, root, f"part '{part}': {' '.join(reason.split())}") from error
        names = names or part_names
        _check(card, root, part, parts[part].labels, part_names, names)
    train, test = (join([parts[part] for part in side]) if side else None for side in (card.train, card.test))
    assert train is not None
    return assemble(options, card.name, names, tuple(map(card.wording, names)), train, test, card.caption)


def _check(card: DatasetCard, root: Path, part: str, labels: Ints, part_names: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a part with missing or other classes: a missing folder would shift the labels of the next classes."""
    if len(part_names) != card.num_classes:
        raise unusable(card, root, f"part '{part}' has {len(part_names)} classes, it must have {card.num_classes}")
    if part_names != names:
        raise unusable(card, root, f"part '{part}' names other classes than the parts before it")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(names):
        raise unusable(card, root, f"part '{part}' has no images, or labels beyond its {len(names)} classes")


def from_files(samples: Iterable[tuple[str | Path, int]], root: Path) -> Images:
    """Images from (path, label) pairs, sorted by path, since every machine lists folders in another order."""
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
    """Images in memory, which were read from `files`."""
    return Images(
        labels, lambda rows: [pixels[row] for row in rows], lambda row: f"{place}[{row}]", stamp=partial(stamp, files, place)
    )


def _below(paths: Sequence[str], root: Path) -> Column:
    """The paths relative to the root, which are the same on every machine."""
    return np.array([Path(path).relative_to(root).as_posix() for path in paths], object)
