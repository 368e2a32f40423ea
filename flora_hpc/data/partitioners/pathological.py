"""Clients hold a few classes each, and an equal part of each class.

Split: each of K clients holds exactly c = `classes_per_client` of the C classes, drawn at random. Every class has K c / C holders,
rounded down or up (fewer where it has fewer examples). A class with n examples and h holders gives each holder n / h, rounded down
or up. This follows McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, who
give each client two runs of the examples sorted by class.

Population: a client chooses c classes at random and draws evenly from them. If they have too few examples, the client takes all of
them and continues with further classes.
"""

import numpy as np
from pydantic import Field

from flora_hpc.data.holdings import Partitioner, PartitionOptions
from flora_hpc.data.images import Images, Ints
from flora_hpc.data.partitioners import _holders
from flora_hpc.data.partitioners._groups import Groups, group
from flora_hpc.errors import UserError


class Options(PartitionOptions):
    """The number of classes of a client."""

    classes_per_client: int = Field(2, ge=1, description="classes that each client holds")


def build(options: Options, images: Images) -> Partitioner:
    classes = group(images.labels)
    per_client = options.classes_per_client
    _holders.check_classes(per_client, classes)

    def split(num_clients: int, rng: np.random.Generator) -> Ints:
        _check(classes, num_clients, per_client)
        return _holders.deal_out(classes, _holders.choose(classes.sizes, num_clients, per_client, rng), None, rng)

    def draw(num_drawn: int, rng: np.random.Generator) -> Ints:
        return _holders.draw(classes, per_client, num_drawn, rng)

    return Partitioner(split, draw)


def _check(classes: Groups, num_clients: int, per_client: int) -> None:
    """Raise UserError where clients cannot hold all classes, or the classes have too few examples."""
    what = f"partition.num_clients: {num_clients:,} clients with {per_client} classes each"
    if num_clients * per_client < len(classes):
        raise UserError(
            f"{what} cannot hold all {len(classes)} classes; raise it to {-(-len(classes) // per_client)} at least, "
            f"or partition.classes_per_client to {-(-len(classes) // num_clients)}"
        )
    if not _holders.enough(classes.sizes, num_clients, per_client):
        raise UserError(
            f"{what} are too many for {len(classes.group_of):,} training examples; "
            f"lower it to {_holders.most_clients(classes.sizes, per_client):,} at most, or lower partition.classes_per_client"
        )
