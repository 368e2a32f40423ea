"""Checks of `flora-hpc slurm` before a job waits in the queue: do clients have examples, do ranks have work?"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flora_hpc.config import Config

if TYPE_CHECKING:
    from flora_hpc.clip.load import Clip
    from flora_hpc.data.images import Dataset


def warnings(configs: Sequence[Config], names: Sequence[str], num_ranks: int, gpus_per_node: int, ranks_per_node: int) -> list[str]:
    """Sentences about ranks without work, for each configuration; `names` say which, empty for one alone.

    Raises UserError for mistakes that a run would refuse. When this machine lacks data or weights, a sentence says so instead.
    """
    import torch  # takes seconds

    from flora_hpc import building, experiment
    from flora_hpc.clip import precision
    from flora_hpc.clip.load import load
    from flora_hpc.forecast import room_for, without_work
    from flora_hpc.round import groups_of_ranks

    sentences: list[str] = []
    room = room_for(gpus_per_node, ranks_per_node)
    built: tuple[Config, Dataset, Clip] | None = None
    for config, name in zip(configs, names, strict=True):
        if missing := first_missing(config):
            lacks = f"clients and ranks are not checked, for this machine lacks what the job needs: {missing}"
            sentences += [lacks] if lacks not in sentences else []
            continue
        if not gpus_per_node:
            precision.prepare_device(config.model.precision, torch.device("cpu"))
            precision.prepare_device(config.features.compute, torch.device("cpu"), "features.compute")
        if built is None or any(getattr(config, key) != getattr(built[0], key) for key in ("data", "model", "seed")):
            built = config, experiment.dataset(config), load(config.model, config.seed, torch.device("meta"))
        _, dataset, clip = built
        setup = building.make_setup(config, dataset, clip, torch.device("meta"), room)
        num_busy = sum(map(bool, groups_of_ranks(setup, num_ranks, 1)))
        sentences += [f"{name}: {text}" if name else text for text in without_work(setup, num_busy, num_ranks)]
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
