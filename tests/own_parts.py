"""Parts of a user's own, as a user writes them: a server's rule, a partitioner and a method."""

from pathlib import Path

FEDAVGM = '''
"""Server momentum (Hsu et al., arXiv 1909.06335)."""

from pydantic import Field
import torch

from flora_hpc.parts import Algorithm, BaseOptions, Server

FAMILY = "algorithms"


class Options(BaseOptions):
    momentum: float = Field(0.9, ge=0, lt=1, description="share of the last step that is kept")


def build(options, setting):
    def apply(adapter, direction, velocity, now):
        velocity = options.momentum * velocity + direction
        return adapter + velocity, velocity

    return Algorithm(server=Server(torch.zeros_like, apply))
'''

STRIPES = '''
"""Client i holds every n-th image, from the i-th on."""

import numpy as np

from flora_hpc.parts import Partitioner, PartitionOptions

FAMILY = "partitioners"


class Options(PartitionOptions):
    """Nothing of its own."""


def build(options, images):
    def split(num_clients, rng):
        return np.arange(len(images)) % num_clients

    def draw(num_drawn, rng):
        return rng.choice(len(images), num_drawn, replace=False)

    return Partitioner(split, draw)
'''

SHIFT = '''
"""One trained vector is added to all image features."""

import torch

from flora_hpc.parts import BaseOptions, Method, cosine_scores, describe, fixed

FAMILY = "methods"


class Options(BaseOptions):
    """Nothing to choose."""


def build(options, setting):
    with torch.no_grad():
        text, scale = setting.text(), setting.clip.model.logit_scale.exp()

    def logits(tensors, classes, inputs, noise):
        return cosine_scores(scale, inputs + tensors["shift"][:, None], classes)

    shapes = {"shift": (text.shape[-1],)}
    return Method(shapes, lambda rng: {"shift": torch.zeros(shapes["shift"])}, fixed(text), logits, how=describe(False, None))
'''


SHADES = '''
"""Squares of two shades."""

import numpy as np

from flora_hpc.parts import DatasetOptions, Images, assemble

FAMILY = "datasets"
DARK = 10


class Options(DatasetOptions):
    """Nothing of its own."""


def build(options):
    labels = np.arange(40) % 2
    pixels = [np.full((16, 16, 3), DARK + 100 * (i % 2) + i, np.uint8) for i in range(40)]
    images = Images(labels, lambda rows: [pixels[row] for row in rows], lambda row: f"square {row}")
    return assemble(options, "my shades", ("dark", "light"), ("dark", "light"), images, None, "a {} square")
'''


def write(folder: Path) -> Path:
    """The four files in a new folder."""
    folder.mkdir()
    for name, source in (("my_fedavgm", FEDAVGM), ("my_stripes", STRIPES), ("my_shift", SHIFT), ("my_shades", SHADES)):
        (folder / f"{name}.py").write_text(source.lstrip())
    return folder


SETTINGS = (
    "algorithm={name: my_fedavgm, momentum: 0.5}",
    "partition={name: my_stripes, num_clients: 3}",
    "method={name: my_shift}",
    "client.lr=0.01",
)
