"""Examples are drawn at random: every client has about the same mix of classes, and sizes are equal to within one."""

import numpy as np

from flora_hpc.data.holdings import Partitioner, PartitionOptions
from flora_hpc.data.images import Images, Ints
from flora_hpc.data.partitioners._choice import choose
from flora_hpc.seeds import Streams


class Options(PartitionOptions):
    """Nothing beyond what every partitioner has."""


def build(options: Options, images: Images) -> Partitioner:
    def split(num_clients: int, rng: np.random.Generator) -> Ints:
        return rng.permutation(np.arange(len(images)) % num_clients)

    def draw(num_drawn: int, rng: np.random.Generator) -> Ints:
        return rng.choice(len(images), num_drawn, replace=False)

    def draw_many(num_drawn: int, streams: Streams, clients: Ints) -> Ints:
        return choose(streams, clients, len(images), num_drawn)

    return Partitioner(split, draw, draw_many=draw_many)
