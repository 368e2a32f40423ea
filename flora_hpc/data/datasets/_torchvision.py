"""torchvision's datasets as members of our family: its loaders find files and labels, and we read the files."""

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
    """What a file of this folder would be, for every set that torchvision reads."""
    return {name: member(facts) for name, facts in CATALOG.items() if facts.torchvision}


def member(facts: DatasetCard) -> ModuleType:
    module = ModuleType(f"{__package__}.{facts.name}", facts.about)
    vars(module).update(Options=Options, build=partial(build, facts, read))
    return module


def load(facts: DatasetCard, root: Path, part: str, **arguments: Any) -> Any:
    """torchvision's own object for one official part; what it calls images are their paths where it lets us choose."""
    from torchvision import datasets  # with torch, seconds of imports

    kind = getattr(datasets, facts.torchvision)
    known = signature(kind).parameters
    if "split" in known:
        arguments["split"] = part
    elif "train" in known:
        arguments["train"] = part == "train"
    if "loader" in known:
        arguments["loader"] = Path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's remarks on how arrays were pickled years ago
        return kind(root, **arguments)


def read(facts: DatasetCard, root: Path, part: str) -> tuple[Images, tuple[str, ...]]:
    """One official part: its images and the names of its classes."""
    data = load(facts, root, part)
    names = facts.class_names or tuple(data.categories if facts.name == "caltech101" else data.classes)
    if facts.name == "pets":
        return from_files(_pets(root, part), root), names
    if facts.name == "caltech101":
        return from_files(_caltech(data, root), root), names
    if hasattr(data, "loader"):
        return from_files((data[i] for i in range(len(data))), root), names
    if hasattr(data, "data"):
        pixels, labels = np.asarray(data.data), data.targets
    else:
        images, labels = zip(*(data[i] for i in range(len(data))), strict=True)
        pixels = np.stack([np.asarray(image) for image in images])
    files = [root / place for need in facts.needs for place in need.split(" or ") if (root / place).exists()]
    return from_pixels(pixels, np.asarray(labels, np.int64), f"{files[0].parent}: {part}", files), names  # type: ignore[arg-type]


def _pets(root: Path, part: str) -> Iterator[tuple[Path, int]]:
    """torchvision keeps the paths to itself, but the list it reads is simple: image, class from 1, species, breed."""
    base = root / "oxford-iiit-pet"
    for line in (base / "annotations" / f"{part}.txt").read_text().splitlines():
        name, label, *_ = line.split()
        yield base / "images" / f"{name}.jpg", int(label) - 1


def _caltech(data: Any, root: Path) -> Iterator[tuple[Path, int]]:
    """torchvision tells each image's class and its number within the class, which its file is named by."""
    base = root / "caltech101" / "101_ObjectCategories"
    for label, number in zip(data.y, data.index, strict=True):
        yield base / data.categories[label] / f"image_{number:04d}.jpg", label
