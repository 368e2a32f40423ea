"""Image-caption pairs, without classes: a CSV, TSV or JSONL file with paths of image files, or WebDataset shards.

A training step scores the images of a batch against the captions of the batch. Test accuracy is retrieval: the share of test images
whose own caption has the highest score among all distinct captions of test images.
"""

import os
from collections import Counter
from pathlib import Path

import numpy as np
from pydantic import Field, field_validator, model_validator

from flora_hpc.data.datasets import _table, _webdataset
from flora_hpc.data.datasets._pairs import Pairs
from flora_hpc.data.datasets._paths import file_at
from flora_hpc.data.images import Dataset, DatasetOptions, draw_test, join
from flora_hpc.errors import UserError, at_home
from flora_hpc.filekinds import kind

TABLES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson")


class Options(DatasetOptions):
    """The files, and their columns of images and captions."""

    path: Path = Field(
        examples=["FILE.csv"],
        description="a .csv, .tsv or .jsonl file; or .tar shards: one, their folder, or a pattern: 'cc-{000..331}.tar'",
    )
    test_path: Path | None = Field(None, description="pairs for testing alone, of any of these forms; otherwise some are drawn")
    caption: str | None = Field(None, description="leave this out: every image of pairs brings its own")
    image_column: str = Field("image", description="column with the path of the image")
    caption_column: str = Field("caption", description="column with the caption; in shards, the key of it in .json")
    images_root: Path | None = Field(
        None, description="folder that paths of images are relative to; by default the one of the file that names them"
    )

    @field_validator("caption", mode="before")
    @classmethod
    def _every_image_has_its_own(cls, caption: object) -> object:
        if caption is not None:
            raise ValueError("every image of pairs brings its own caption; leave this out")
        return caption

    @model_validator(mode="after")
    def _two_columns(self) -> "Options":
        if self.image_column == self.caption_column:
            raise ValueError("data.caption_column: is the same as data.image_column; name the two columns")
        return self


def build(options: Options) -> Dataset:
    """Read the captions and the places of the images. Raises UserError for a file that has no pairs.

    Test images are drawn from all pairs at once, since each caption is a class. An image with several captions is drawn once, with
    all its captions, so that no image is in both parts.
    """
    paths = {"data.path": options.path, "data.test_path": options.test_path}
    parts = [_read(options, key, path) for key, path in paths.items() if path is not None]
    captions = tuple(dict.fromkeys(caption for part in parts for caption in part.captions))
    number = {caption: i for i, caption in enumerate(captions)}
    images = join([part.images(np.array([number[caption] for caption in part.captions], np.int64)) for part in parts])
    name = options.path.stem or "pairs"
    if len(parts) == 2 and options.split == "official":
        is_test = np.arange(len(images)) >= len(parts[0].captions)
        if both := sorted(set(parts[0].pictures) & set(parts[1].pictures)):
            raise UserError(
                f"data.test_path: {len(both):,} images are in data.path, too, such as {both[0]}; take them out of one of the two"
            )
    else:
        pictures: dict[str, int] = {}
        picture_of = np.array([pictures.setdefault(picture, len(pictures)) for part in parts for picture in part.pictures])
        if len(pictures) == 1:
            raise UserError(
                f"data.path: {options.path} has a single image; it needs another one for testing, or set data.test_path"
            )
        is_test = draw_test(np.zeros(len(pictures), np.int64), options.test_fraction, name)[picture_of]
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    left_out = sum((Counter(part.left_out) for part in parts), Counter[str]())
    return Dataset(name, captions, captions, captions, images, train, test, paired=True, left_out=left_out)


def _read(options: Options, key: str, path: Path) -> Pairs:
    """Read the pairs of a table or of shards, by the suffix of `path`."""
    if path.suffix.lower() in TABLES:
        path = file_at(key, path)
        root = at_home(options.images_root, key="data.images_root") if options.images_root else None
        return _table.pairs(key, path, root, options.image_column, options.caption_column)
    path = at_home(path, key=key)
    if os.path.isfile(path) and path.suffix.lower() != ".tar":  # noqa: PTH113 -- pathlib raises for names that are too long
        what = kind(path) or "of no known kind"
        raise UserError(f"{key}: {path} is {what}; pairs come from {', '.join(TABLES)} or .tar files")
    return _webdataset.pairs(key, path, options.caption_column)
