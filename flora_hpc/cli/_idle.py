"""Checks of `flora-hpc slurm` before a job waits in the queue: do clients have examples, do ranks have work?"""

from pathlib import Path

from flora_hpc.config import Config
from flora_hpc.records.views import count


def warnings(configs: list[Config], num_ranks: int, gpus_per_node: int, ranks_per_node: int) -> list[str]:
    """Sentences about ranks without work, for each configuration; `configs` differ only in `partition.num_clients`.

    Raises UserError for mistakes that a run would refuse. When this machine lacks data or weights, a sentence says so instead.
    """
    import torch  # takes seconds

    from flora_hpc import experiment
    from flora_hpc.clip import precision
    from flora_hpc.clip.load import load
    from flora_hpc.forecast import room_for
    from flora_hpc.round import groups_of_ranks

    first = configs[0]
    if missing := first_missing(first):
        return [f"clients and ranks are not checked, for this machine lacks what the job needs: {missing}"]
    if not gpus_per_node:
        precision.prepare_device(first.model.precision, torch.device("cpu"))
        precision.prepare_device(first.features.compute, torch.device("cpu"), "features.compute")
    dataset = experiment.dataset(first)
    clip, room = load(first.model, first.seed, torch.device("meta")), room_for(gpus_per_node, ranks_per_node)
    sentences = []
    for config in configs:
        setup = experiment.make_setup(config, dataset, clip, torch.device("meta"), room)
        idle = sum(not groups for groups in groups_of_ranks(setup, num_ranks, 1))
        if idle:
            clients = count(config.cohort.num_clients(setup.holdings.num_clients), "client")
            group_note, advice = "", ""
            if setup.grouping.fixed:
                group_note = f", which make {count(num_ranks - idle, 'group')} of up to {setup.grouping.most}"
                advice = ", or set a lower client.group_size"
            registered = f"partition.num_clients {setup.holdings.num_clients:,}: " if len(configs) > 1 else ""
            sentences.append(
                f"{registered}{idle} of {num_ranks} ranks have no work, since a round has {clients}{group_note}; "
                f"ask for fewer ranks{advice}"
            )
    return sentences


def first_missing(config: Config) -> str:
    """The first file, folder or dataset of a configuration that this machine lacks; empty when it has all of them."""
    from flora_hpc.data import fetch
    from flora_hpc.data.datasets._catalog import CATALOG

    pretrained = config.model.pretrained
    places = {"model.pretrained": pretrained if pretrained and Path(pretrained).is_absolute() else None}  # a path, not a tag
    places |= {f"data.{key}": getattr(config.data, key, None) for key in ("path", "test_path", "root", "images_root", "names")}
    places["partition.path"] = getattr(config.partition, "path", None)
    for key, place in places.items():
        braces = config.data.name == "pairs" and key.startswith("data.") and "{" in str(place)  # of several shards
        if place and not braces and not Path(place).expanduser().exists():
            return f"{key}: {place}"
    return (fetch.missing(config.data.name, getattr(config.data, "root", None)) if config.data.name in CATALOG else None) or ""
