"""Datasets of torchvision: its loaders find files and labels, and this project reads the files."""

import warnings
from collections.abc import Iterator
from functools import partial
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from flora_hpc.data.datasets._catalog import CATALOG, DatasetCard
from flora_hpc.data.datasets._stored import Options, build, from_files, from_pixels
from flora_hpc.data.images import Images


def members() -> dict[str, ModuleType]:
    """A module for every dataset that torchvision reads, as if each were a file of this folder."""
    return {name: member(card) for name, card in CATALOG.items() if card.torchvision}


def member(card: DatasetCard) -> ModuleType:
    """A module with the `Options` and `build` of one dataset."""
    module = ModuleType(f"{__package__}.{card.name}", card.about)
    vars(module).update(Options=Options, build=partial(build, card, read))
    return module


def load(card: DatasetCard, root: Path, part: str, **arguments: Any) -> Any:
    """The torchvision dataset of one official part, with paths in place of images where its loader can be set."""
    from torchvision import datasets  # with torch, seconds of imports

    kind = getattr(datasets, card.torchvision)
    parameters = signature(kind).parameters
    if "split" in parameters:
        arguments["split"] = part
    elif "train" in parameters:
        arguments["train"] = part == "train"
    if "loader" in parameters:
        arguments["loader"] = Path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns of arrays that were pickled years ago
        return kind(root, **arguments)


def read(card: DatasetCard, root: Path, part: str) -> tuple[Images, tuple[str, ...]]:
    """Read one official part: its images and the names of its classes."""
    data = load(card, root, part)
    names = card.class_names or tuple(data.categories if card.name == "caltech101" else data.classes)
    if card.name == "pets":
        return from_files(_pets(root, part), root), names
    if card.name == "caltech101":
        return from_files(_caltech(data, root), root), names
    if hasattr(data, "loader"):
        return from_files((data[i] for i in range(len(data))), root), names
    if hasattr(data, "data"):
        pixels, labels = np.asarray(data.data), data.targets
    else:
        images, labels = zip(*(data[i] for i in range(len(data))), strict=True)
        pixels = np.stack([np.asarray(image) for image in images])
    files = [root / place for need in card.needs for place in need.split(" or ") if (root / place).exists()]
    return from_pixels(pixels, np.asarray(labels, np.int64), f"{files[0].parent}: {part}", files), names  # type: ignore[arg-type]


def _pets(root: Path, part: str) -> Iterator[tuple[Path, int]]:
    """(path, label) pairs from the list of a part, since torchvision hides its paths: image, class from 1, species, breed."""
    base = root / "oxford-iiit-pet"
    for line in (base / "annotations" / f"{part}.txt").read_text().splitlines():
        name, label, *_ = line.split()
        yield base / "images" / f"{name}.jpg", int(label) - 1


def _caltech(data: Any, root: Path) -> Iterator[tuple[Path, int]]:
    """(path, label) pairs: torchvision has the class of each image and its number within the class, which is in the file name."""
    base = root / "caltech101" / "101_ObjectCategories"
    for label, number in zip(data.y, data.index, strict=True):
        yield base / data.categories[label] / f"image_{number:04d}.jpg", label
