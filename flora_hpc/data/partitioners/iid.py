"""Every client's examples are drawn alike: the same mix of classes for all, sizes equal to within one."""

import numpy as np

from flora_hpc.data.images import Ints
from flora_hpc.data.shards import Partitioner, PartitionOptions


class Options(PartitionOptions):
    """Nothing beyond what every partitioner has."""


def build(options: Options, labels: Ints) -> Partitioner:
    def split(num_clients: int, rng: np.random.Generator) -> Ints:
        return rng.permutation(np.arange(len(labels)) % num_clients)

    def draw(num_drawn: int, rng: np.random.Generator) -> Ints:
        return rng.choice(len(labels), num_drawn, replace=False)

    return Partitioner(split, draw)
