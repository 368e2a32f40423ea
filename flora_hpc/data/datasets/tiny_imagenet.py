"""Tiny ImageNet: 110,000 photos of 64 x 64 pixels, 200 of ImageNet's kinds; its official validation images test."""

from collections.abc import Iterator
from pathlib import Path

from flora_hpc.data.datasets import _stored
from flora_hpc.data.datasets._catalog import CATALOG, DatasetCard
from flora_hpc.data.images import Dataset, Images

Options = _stored.Options


def build(options: Options) -> Dataset:
    return _stored.build(CATALOG["tiny_imagenet"], read, options)


def read(card: DatasetCard, root: Path, part: str) -> tuple[Images, tuple[str, ...]]:
    """Read one official part. The official test images have no labels and are not used."""
    base = root / "tiny-imagenet-200"
    label = {wnid: i for i, wnid in enumerate((base / "wnids.txt").read_text().split())}
    samples = _train(base, label) if part == "train" else _val(base, label)
    return _stored.from_files(samples, root), _names(base, list(label))


def _train(base: Path, label: dict[str, int]) -> Iterator[tuple[Path, int]]:
    for wnid, number in label.items():
        for path in (base / "train" / wnid / "images").iterdir():
            if path.suffix == ".JPEG":
                yield path, number


def _val(base: Path, label: dict[str, int]) -> Iterator[tuple[Path, int]]:
    for line in (base / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid, *_ = line.split()
        if wnid not in label:
            raise ValueError(f"val_annotations.txt has class {wnid} for {name}, which wnids.txt does not have")
        yield base / "val" / "images" / name, label[wnid]


def _names(base: Path, wnids: list[str]) -> tuple[str, ...]:
    """The first of each class's synonyms: 'goldfish' of 'n01443537, goldfish, Carassius auratus'."""
    words = dict(line.split("\t", 1) for line in (base / "words.txt").read_text().splitlines() if line)
    missing = [wnid for wnid in wnids if wnid not in words]
    if missing:
        raise ValueError(f"words.txt has no line for class {missing[0]}")
    return tuple(words[wnid].split(",")[0].strip() for wnid in wnids)
