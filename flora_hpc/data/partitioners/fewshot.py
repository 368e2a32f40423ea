"""Every client gets the same few examples of every class; the others are nobody's.

Split: `shots` examples of each class for each client, drawn at random, no two clients sharing one; it is the IID few-shot setting
of Nguyen et al., "FLoRA: Enhancing Vision-Language Models with Parameter-Efficient Federated Learning", arXiv 2404.15182.

Population: n = `examples_per_client` examples drawn evenly from the C classes, n / C of each, rounded down or up at random; where a
class has too few, the others make up for it.
"""

import numpy as np

from flora_hpc.data.holdings import Partitioner
from flora_hpc.data.images import Images, Ints
from flora_hpc.data.partitioners._counts import cut
from flora_hpc.data.partitioners._groups import group
from flora_hpc.data.partitioners._shots import ShotsOptions, refuse


class Options(ShotsOptions):
    """Nothing beyond what every few-shot partitioner has."""


def build(options: Options, images: Images) -> Partitioner:
    classes = group(images.labels)

    def split(num_clients: int, rng: np.random.Generator) -> Ints:
        assert options.shots is not None
        taken = options.shots * num_clients
        smallest = int(classes.sizes.argmin())
        has = int(classes.sizes[smallest])
        if taken > has:
            what = f"{num_clients:,} clients with {options.shots} examples of each class need {taken:,} of class "
            what += f"{classes.names[smallest]}, which has {has:,}"
            raise refuse(what, has // num_clients, has // options.shots)
        clients = np.full(len(images), -1, np.int64)
        places = classes.places
        clients[classes.shuffled(rng)[places < taken]] = places[places < taken] % num_clients
        return clients

    def draw(num_drawn: int, rng: np.random.Generator) -> Ints:
        return classes.draw(cut(classes.sizes, num_drawn, rng), rng)

    return Partitioner(split, draw)
