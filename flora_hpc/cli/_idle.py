"""What `flora-hpc slurm` looks at before a job waits in the queue: do the clients have examples, do the ranks have work?"""

from flora_hpc.config import Config
from flora_hpc.errors import UserError


def warnings(configs: list[Config], num_ranks: int, gpus_per_node: int, ranks_per_node: int) -> list[str]:
    """Sentences about ranks without work, for each configuration; they differ in `partition.num_clients` alone.

    Raises UserError for what a run would refuse. Where the data are not on this machine, a sentence says that nobody looked.
    """
    import torch  # takes seconds

    from flora_hpc import prepare
    from flora_hpc.cli.plan import room_for
    from flora_hpc.clip import precision
    from flora_hpc.clip.load import load
    from flora_hpc.round import groups_of

    first = configs[0]
    if not gpus_per_node:
        precision.settle(first.model.precision, torch.device("cpu"))
    try:
        dataset = prepare.dataset(first)
    except UserError as error:
        return [f"clients and ranks are not checked, since the data cannot be used here: {error}"]
    clip, room = load(first.model, first.seed, torch.device("meta")), room_for(gpus_per_node, ranks_per_node)
    sentences = []
    for config in configs:
        fed = prepare.federation(config, dataset, clip, torch.device("meta"), room)
        num_groups = len(groups_of(fed, 1))
        if num_groups < num_ranks:
            clients = config.cohort.num_clients(fed.shards.num_clients)
            sentences.append(
                f"{num_ranks - num_groups} of {num_ranks} ranks have no work: the {clients:,} clients of a round make "
                f"{num_groups:,} groups of up to {fed.group_size}; ask for fewer ranks, or set a lower client.group_size"
            )
    return sentences
