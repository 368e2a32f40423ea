"""What a dataset is: two sets of labelled images and a caption for each class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field, field_validator

from flora_hpc.plugins import BaseOptions

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """Labels, and images that are read when needed. `read(rows)` gives the images of these indices, RGB."""

    labels: Ints  # (num_images,) int64, indices into the class names
    read: Callable[[Sequence[int]], list[Image.Image]]


@dataclass(frozen=True)
class Dataset:
    """Clients train on `train`; nobody trains on `test`."""

    name: str
    class_names: tuple[str, ...]
    wordings: tuple[str, ...]  # the names as captions say them
    captions: tuple[str, ...]  # one per class
    train: Images
    test: Images


class DatasetOptions(BaseOptions):
    """What every dataset lets one choose."""

    caption: str = Field("a photo of a {}.", description="caption of an image; {} stands for the name of its class")

    @field_validator("caption")
    @classmethod
    def _has_place_for_the_name(cls, caption: str) -> str:
        if caption.count("{}") != 1 or set("{}") & set(caption.replace("{}", "")):
            raise ValueError(f"needs {{}} once, where the name of the class goes, and no other braces, not {caption!r}")
        return caption
