"""A dataset: images in a fixed order, rows for training, rows for testing, and a caption for each class."""

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
Raw = bytes | npt.NDArray[np.uint8] | OSError  # an image file's bytes; pixels (height, width[, channels]); or a read error

LOOKERS = 8  # threads that read the times or the first bytes of files
CAPTION = "a photo of a {}."  # of datasets without a caption


class Origin(NamedTuple):
    """The dataset of the training images, for a partitioner whose file names images by number or path."""

    images: "Images"  # all images of the dataset
    train: Ints  # (num_train,) int64, rows of the training images
    test: Ints  # (num_test,) int64; images in neither part are dropped, because they cannot be decoded


@dataclass(frozen=True)
class Images:
    """Labelled images in a fixed order. Images are read on request, and not decoded."""

    labels: Ints  # (num_images,) int64, indices into the class names
    raw: Callable[[Sequence[int]], list[Raw]]  # rows -> the images as they are stored
    where: Callable[[int], str]  # row -> the place of the image, for messages: its path, and its index within a file
    columns: Mapping[str, Callable[[], Column]] = field(default_factory=dict)  # (num_images,) each; texts are Python objects
    stamp: Callable[[], str] | None = None  # a text that changes whenever a file changes, cheap to make; None for images in memory
    origin: Origin | None = None  # set for images that a partitioner splits

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Ints) -> "Images":
        """The images of `rows`, in this order."""
        columns = {name: partial(_take, read, rows) for name, read in self.columns.items()}
        stamp_of_all = self.stamp

        def stamp_of_rows() -> str:
            assert stamp_of_all is not None
            return f"{stamp_of_all()}, of which {hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest()}"

        return Images(
            self.labels[rows],
            lambda indices: self.raw([int(rows[i]) for i in indices]),
            lambda i: self.where(int(rows[i])),
            columns,
            None if stamp_of_all is None else stamp_of_rows,
        )

    def column(self, name: str, key: str) -> Column:
        """Read a column (num_images,). Raises UserError, with the option `key` that names the column, when there is none."""
        if name not in self.columns:
            names = f"it has {', '.join(sorted(self.columns))}" if self.columns else "it has none"
            raise UserError(f"{key}: the data has no column '{name}'{did_you_mean(name, self.columns)} ({names})")
        return self.columns[name]()


def _take(read: Callable[[], Column], rows: Ints) -> Column:
    return read()[rows]


def _concatenate(reads: Sequence[Callable[[], Column]]) -> Column:
    return np.concatenate([read() for read in reads])


def join(parts: Sequence[Images]) -> Images:
    """Concatenate images of several parts. The result has the columns that all parts have."""
    starts = np.cumsum([0, *map(len, parts)])

    def raw(rows: Sequence[int]) -> list[Raw]:
        numbers = np.searchsorted(starts, np.asarray(rows, np.int64), "right") - 1  # of the parts
        result: list[Raw] = [b""] * len(rows)
        for number in set(numbers.tolist()):
            places = np.flatnonzero(numbers == number)
            raws = parts[number].raw([rows[place] - int(starts[number]) for place in places.tolist()])
            for place, image in zip(places.tolist(), raws, strict=True):
                result[place] = image
        return result

    def where(row: int) -> str:
        number = int(np.searchsorted(starts, row, "right")) - 1
        return parts[number].where(row - int(starts[number]))

    shared = set.intersection(*(set(part.columns) for part in parts))
    columns = {name: partial(_concatenate, [part.columns[name] for part in parts]) for name in sorted(shared)}
    stamps = [part.stamp for part in parts if part.stamp is not None]
    joined_stamp = (lambda: "\n".join(stamp() for stamp in stamps)) if len(stamps) == len(parts) else None
    return Images(np.concatenate([part.labels for part in parts]), raw, where, columns, joined_stamp)


def _times(file: Path) -> str:
    """Size and times of a file, as a text."""
    try:
        status = file.stat()
        return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    except OSError as error:  # reported when the image is read
        return type(error).__name__


def stamp(files: Iterable[Path], also: str = "") -> str:
    """A digest of paths, sizes and times of files, and of `also`: it changes whenever a file is written or lost."""
    digest = hashlib.blake2b(also.encode(), digest_size=16)
    with ThreadPoolExecutor(LOOKERS, "stat") as lookers:  # the file system takes most of the time
        for file, times in lookers.map(lambda file: (file, _times(file)), files):
            digest.update(f"\0{file.absolute()}\0{times}".encode(errors="surrogateescape"))
    return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """Clients train on the rows `train` of `images`; nobody trains on the rows `test` and `validation`."""

    name: str
    class_names: tuple[str, ...]
    wordings: tuple[str, ...]  # the names as captions write them
    captions: tuple[str, ...]  # one per class
    images: Images
    train: Ints
    test: Ints
    paired: bool = False  # every image has its own caption; the "classes" are then the distinct captions
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> number of files that are no images of the dataset
    warnings: tuple[str, ...] = ()  # sentences for the user before round 0: usable data that may not be meant so
    validation: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # rows that hyperparameters are chosen on

    def drop(self, rows: Sequence[int]) -> "Dataset":
        """Remove these images from training, validation and testing; `images` keeps their rows."""
        dropped = np.asarray(rows, np.int64)
        train, test, validation = (np.setdiff1d(part, dropped) for part in (self.train, self.test, self.validation))
        return replace(self, train=train, test=test, validation=validation)


class DatasetOptions(BaseOptions):
    """Options of every dataset."""

    caption: str | None = Field(
        None, description="caption of an image, {} stands for the name of its class; by default the dataset's own"
    )
    split: Literal["official", "merged"] = Field(
        "official", description="test images: the official ones where there are any, or a part of all images merged (the paper's)"
    )
    test_fraction: float = Field(0.2, gt=0, lt=1, description="where test images are drawn: share of each class kept for testing")
    validation_fraction: float = Field(
        0, ge=0, lt=1, description="share of each class of the training images that no client holds, to choose hyperparameters on"
    )
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
    """Make a dataset from its official parts; `caption` is its template unless `options` gives another.

    Test images are drawn where `test` is None or `options` asks for a new split: the same share of every class. They do not depend
    on the seed of a run, so every run has the same test images.
    """
    images = train if test is None else join([train, test])
    if test is not None and options.split == "official":
        is_test = np.arange(len(images)) >= len(train)
    else:
        is_test = draw_test(images.labels, options.test_fraction, name)
    captions = tuple((options.caption or caption).format(wording) for wording in wordings)
    return Dataset(name, tuple(class_names), tuple(wordings), captions, images, np.flatnonzero(~is_test), np.flatnonzero(is_test))


def draw_test(labels: Ints, fraction: float, name: str) -> npt.NDArray[np.bool_]:
    """Draw test images (num_images,) bool: `fraction` of every class, at least one and never all of a class."""
    return _draw(labels, fraction, f"{name}: test images")


def with_validation(dataset: Dataset, fraction: float) -> Dataset:
    """Make `fraction` of the training images of every class validation images: at least one and never all of a class.

    They do not depend on the seed of a run. Raises UserError for pairs, and where no class has two training images.
    """
    if fraction == 0:
        return dataset
    if dataset.paired:
        raise UserError("data.validation_fraction: is a share of each class, but pairs have no classes; leave it out")
    is_validation = _draw(dataset.images.labels[dataset.train], fraction, f"{dataset.name}: validation images")
    if not is_validation.any():
        raise UserError(
            f"data.validation_fraction: no class of {dataset.name} has two training images, so none is left to choose on; "
            "leave it out, or add images"
        )
    validation = np.union1d(dataset.validation, dataset.train[is_validation])
    return replace(dataset, train=dataset.train[~is_validation], validation=validation)


def _draw(labels: Ints, fraction: float, purpose: str) -> npt.NDArray[np.bool_]:
    """Draw `fraction` of the images of every class, at least one and never all of a class: (num_images,) bool."""
    order = seeds.generator(0, purpose).permutation(len(labels))
    is_drawn = np.zeros(len(labels), bool)
    mixed = labels[order]
    for of_class in np.split(order[np.argsort(mixed, kind="stable")], np.cumsum(np.bincount(mixed))[:-1]):
        is_drawn[of_class[: min(max(1, round(fraction * len(of_class))), len(of_class) - 1)]] = True
    return is_drawn
