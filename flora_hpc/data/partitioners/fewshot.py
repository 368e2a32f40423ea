"""Every client gets the same small number of examples of every class; other examples belong to no client.

Split: each client gets `shots` random examples of each class, and no two clients share one. This is the IID few-shot setting of
Nguyen et al., "FLoRA: Enhancing Vision-Language Models with Parameter-Efficient Federated Learning", arXiv 2404.15182.

Population: a client draws n = `examples_per_client` examples evenly from the C classes, n / C of each, rounded down or up at
random. Where a class has too few examples, other classes replace them.
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
        needed = options.shots * num_clients
        smallest = int(classes.sizes.argmin())
        available = int(classes.sizes[smallest])
        if needed > available:
            what = f"{num_clients:,} clients with {options.shots} examples of each class need {needed:,} of class "
            what += f"{classes.names[smallest]}, which has {available:,}"
            raise refuse(what, available // num_clients, available // options.shots)
        clients = np.full(len(images), -1, np.int64)
        places = classes.places
        clients[classes.shuffled(rng)[places < needed]] = places[places < needed] % num_clients
        return clients

    def draw(num_drawn: int, rng: np.random.Generator) -> Ints:
        return classes.draw(cut(classes.sizes, num_drawn, rng), rng)

    return Partitioner(split, draw)
