"""What a dataset is: images in a fixed order, which of them train and which test, and a caption for each class."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from flora_hpc import seeds
from flora_hpc.data.texts import template_fault
from flora_hpc.errors import UserError, did_you_mean
from flora_hpc.plugins import BaseOptions

Ints = npt.NDArray[np.int64]
Column = npt.NDArray[Any]
Raw = bytes | npt.NDArray[np.uint8] | OSError  # an image file's bytes; pixels (height, width[, channels]); or why it cannot be read

LOOKERS = 8  # threads that ask for the times of files
CAPTION = "a photo of a {}."  # of datasets that have none of their own


class Origin(NamedTuple):
    """The dataset that training images were taken from, for a partitioner that is told of images by number or by name."""

    images: "Images"  # all of the dataset's
    train: Ints  # (num_train,) int64, rows of the training images
    test: Ints  # (num_test,) int64; images in neither part are left out, because they cannot be decoded


@dataclass(frozen=True)
class Images:
    """Labelled images in a fixed order. Nothing is read before it is asked for, and nothing is decoded here."""

    labels: Ints  # (num_images,) int64, indices into the class names
    raw: Callable[[Sequence[int]], list[Raw]]  # the images of these indices as they are stored
    where: Callable[[int], str]  # where image i lies, for people: its path, and its index within a file
    columns: Mapping[str, Callable[[], Column]] = field(default_factory=dict)  # (num_images,) each; texts as Python's own objects
    stamp: Callable[[], str] | None = None  # changes whenever a file does, and is quick; None where nothing is on disk
    origin: Origin | None = None  # of images that a partitioner splits

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Ints) -> "Images":
        """These images alone, in this order."""
        columns = {name: partial(_some, read, rows) for name, read in self.columns.items()}
        whole = self.stamp
        return Images(
            self.labels[rows],
            lambda wanted: self.raw([int(rows[i]) for i in wanted]),
            lambda i: self.where(int(rows[i])),
            columns,
            None if whole is None else lambda: f"{whole()}, of which {hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest()}",
        )

    def column(self, name: str, key: str) -> Column:
        """A column (num_images,) by name. Raises UserError, naming the option `key` that asked for it, when there is none."""
        if name not in self.columns:
            known = f"it has {', '.join(sorted(self.columns))}" if self.columns else "it has none"
            raise UserError(f"{key}: the data has no column '{name}'{did_you_mean(name, self.columns)} ({known})")
        return self.columns[name]()


def _some(read: Callable[[], Column], rows: Ints) -> Column:
    return read()[rows]


def _all(reads: Sequence[Callable[[], Column]]) -> Column:
    return np.concatenate([read() for read in reads])


def join(parts: Sequence[Images]) -> Images:
    """Several sets one after the other. Columns are those that all of them have."""
    starts = np.cumsum([0, *map(len, parts)])

    def raw(rows: Sequence[int]) -> list[Raw]:
        of = np.searchsorted(starts, np.asarray(rows, np.int64), "right") - 1
        result: list[Raw] = [b""] * len(rows)
        for number in set(of.tolist()):
            places = np.flatnonzero(of == number)
            found = parts[number].raw([rows[place] - int(starts[number]) for place in places.tolist()])
            for place, image in zip(places.tolist(), found, strict=True):
                result[place] = image
        return result

    def where(row: int) -> str:
        number = int(np.searchsorted(starts, row, "right")) - 1
        return parts[number].where(row - int(starts[number]))

    shared = set.intersection(*(set(part.columns) for part in parts))
    columns = {name: partial(_all, [part.columns[name] for part in parts]) for name in sorted(shared)}
    stamps = [part.stamp for part in parts if part.stamp is not None]
    together = (lambda: "\n".join(each() for each in stamps)) if len(stamps) == len(parts) else None
    return Images(np.concatenate([part.labels for part in parts]), raw, where, columns, together)


def _times(file: Path) -> str:
    try:
        facts = file.stat()
        return f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"
    except OSError as error:  # told when the image is read
        return type(error).__name__


def stamp(files: Iterable[Path], also: str = "") -> str:
    """A digest of the places, sizes and times of files, and of `also`: it changes whenever one of them is written or lost."""
    digest = hashlib.blake2b(also.encode(), digest_size=16)
    with ThreadPoolExecutor(LOOKERS, "stat") as lookers:  # most of the time goes into waiting for the file system
        for file, known in lookers.map(lambda file: (file, _times(file)), files):
            digest.update(f"\0{file.absolute()}\0{known}".encode(errors="surrogateescape"))
    return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """Clients train on the rows `train` of `images`; nobody trains on the rows `test`."""

    name: str
    class_names: tuple[str, ...]
    wordings: tuple[str, ...]  # the names as captions say them
    captions: tuple[str, ...]  # one per class
    images: Images
    train: Ints
    test: Ints
    paired: bool = False  # whether every image has a caption of its own; the "classes" are then the distinct captions
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> number of files that are no images of the dataset
    warnings: tuple[str, ...] = ()  # sentences that a user must read before round 0: the data can be used, but may not be meant so

    def drop(self, rows: Sequence[int]) -> "Dataset":
        """The dataset without these images, which stay where they are but belong to nobody."""
        gone = np.asarray(rows, np.int64)
        return replace(self, train=np.setdiff1d(self.train, gone), test=np.setdiff1d(self.test, gone))


class DatasetOptions(BaseOptions):
    """What every dataset lets one choose."""

    caption: str | None = Field(
        None, description="caption of an image, {} stands for the name of its class; by default the dataset's own"
    )
    split: Literal["official", "merged"] = Field(
        "official", description="test images: the official ones where there are any, or a part of all images merged (the paper's)"
    )
    test_fraction: float = Field(0.2, gt=0, lt=1, description="where test images are drawn: share of each class kept for testing")
    damaged: Literal["refuse", "skip"] = Field(
        "refuse", description="images that cannot be decoded: refuse to run, or leave them out"
    )

    @field_validator("caption")
    @classmethod
    def _has_place_for_the_name(cls, caption: str | None) -> str | None:
        if caption is not None and (why := template_fault(caption)) is not None:
            raise ValueError(why)
        return caption


def assemble(
    options: DatasetOptions,
    name: str,
    class_names: Sequence[str],
    wordings: Sequence[str],
    train: Images,
    test: Images | None,
    caption: str = CAPTION,
) -> Dataset:
    """A dataset from its official parts, with a caption of its own.

    Test images are drawn where `test` is None or `options` asks for a new split: from every class alike, and without regard to the
    seed of a run, so that every run has the same ones.
    """
    images = train if test is None else join([train, test])
    if test is not None and options.split == "official":
        is_test = np.arange(len(images)) >= len(train)
    else:
        is_test = draw_test(images.labels, options.test_fraction, name)
    captions = tuple((options.caption or caption).format(wording) for wording in wordings)
    return Dataset(name, tuple(class_names), tuple(wordings), captions, images, np.flatnonzero(~is_test), np.flatnonzero(is_test))


def draw_test(labels: Ints, fraction: float, name: str) -> npt.NDArray[np.bool_]:
    """Which images (num_images,) are kept for testing: `fraction` of every class, but at least one and never all of it."""
    order = seeds.generator(0, f"{name}: test images").permutation(len(labels))
    is_test = np.zeros(len(labels), bool)
    mixed = labels[order]
    for of_class in np.split(order[np.argsort(mixed, kind="stable")], np.cumsum(np.bincount(mixed))[:-1]):
        is_test[of_class[: min(max(1, round(fraction * len(of_class))), len(of_class) - 1)]] = True
    return is_test
