"""Every client gets the same small number of examples of its few classes; other examples belong to no client.

Split: each of K clients holds exactly c = `classes_per_client` of the C classes, drawn at random. Every class has K c / C holders,
rounded down or up (fewer where it has too few examples). A client gets `shots` examples of each of its classes, and no two clients
share one. This is the pathological few-shot setting of Nguyen et al., "FLoRA: Enhancing Vision-Language Models with
Parameter-Efficient Federated Learning", arXiv 2404.15182, with the holders as in McMahan et al., AISTATS 2017.

Population: as in `pathological`, a client picks c classes at random and draws `examples_per_client` examples evenly from them.
"""

from bisect import bisect_left

import numpy as np
from pydantic import Field

from flora_hpc.data.holdings import Partitioner
from flora_hpc.data.images import Images, Ints
from flora_hpc.data.partitioners import _holders
from flora_hpc.data.partitioners._groups import Groups, group
from flora_hpc.data.partitioners._shots import ShotsOptions, refuse


class Options(ShotsOptions):
    """The number of classes of a client."""

    classes_per_client: int = Field(2, ge=1, description="classes that each client holds")


def build(options: Options, images: Images) -> Partitioner:
    classes = group(images.labels)
    per_client = options.classes_per_client
    _holders.check_classes(per_client, classes)

    def split(num_clients: int, rng: np.random.Generator) -> Ints:
        assert options.shots is not None
        _check(classes, num_clients, per_client, options.shots)
        client_classes = _holders.choose(classes.sizes // options.shots, num_clients, per_client, rng)
        return _holders.deal_out(classes, client_classes, options.shots, rng)

    def draw(num_drawn: int, rng: np.random.Generator) -> Ints:
        return _holders.draw(classes, per_client, num_drawn, rng)

    return Partitioner(split, draw)


def _check(classes: Groups, num_clients: int, per_client: int, shots: int) -> None:
    """Raise UserError where the classes have too few examples for all clients."""

    def too_few(shots: int) -> bool:
        return not _holders.enough(classes.sizes // shots, num_clients, per_client)

    if too_few(shots):
        num_images = len(classes.group_of)
        what = f"{num_clients:,} clients with {shots} examples of {per_client} classes are too many for {num_images:,} images"
        most_clients = _holders.most_clients(classes.sizes // shots, per_client)
        raise refuse(what, bisect_left(range(1, shots), True, key=too_few), most_clients)
