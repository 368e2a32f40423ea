"""The identity of a run: digests of everything that decides its results. A run is resumed only with the same identity."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from flora_hpc import configfile
from flora_hpc.config import Config
from flora_hpc.data import holdings
from flora_hpc.data.images import Dataset, Ints
from flora_hpc.userparts import Part


@dataclass(frozen=True)
class Identity:
    """Everything that decides the results of a run. Checkpoints of any other run are refused."""

    essence: Config
    digests: Mapping[str, str]  # of data and weights
    sources: Mapping[str, str]  # where data and weights come from, for people
    chosen: Mapping[str, str] = field(default_factory=dict)  # settings that the program chose, and that decide bits

    @property
    def all(self) -> dict[str, str]:
        """The names and values that a run's file stores."""
        return {**self.digests, **self.chosen}

    def differences(self, began_with: Mapping[str, str]) -> str:
        """Name the digests that differ from those that a run began with, and their sources; empty without differences."""
        changed: dict[str, list[str]] = {}
        for name, digest in began_with.items():
            if self.digests.get(name, digest) != digest:
                changed.setdefault(self.sources[name], []).append(name)
        return "; ".join(f"{', '.join(names)} ({source})" for source, names in changed.items())


def of_data(dataset: Dataset, holders: holdings.Holdings | None = None, ranks: Ints | None = None) -> dict[str, str]:
    """Digests of the data that decide the results of a run, except the images.

    `ranks` (num_clients,) are those of the clients' adapters where a column says them.
    """
    partition = [holders.order, holders.starts] if isinstance(holders, holdings.Partition) else []
    split = (dataset.train, dataset.test, *([dataset.validation] if len(dataset.validation) else []))
    parts = {
        "captions": [json.dumps([dataset.captions, dataset.wordings]).encode()],
        "labels": [dataset.images.labels.tobytes()],
        "split": [rows.tobytes() for rows in split],
        "clients": [array.tobytes() for array in partition],
        **({} if ranks is None else {"ranks": [ranks.tobytes()]}),
    }
    return {name: hashlib.blake2b(b"\0".join(data), digest_size=16).hexdigest() for name, data in parts.items()}


def of_parts(config: Config) -> dict[str, str]:
    """Digests of the user's own parts that a configuration names."""
    return {title(part): part.digest for part in configfile.own_parts(config)}


def title(part: Part) -> str:
    """The name of a user's part in messages and files."""
    return f"{part.family[:-1]} {part.name}"


def sources(config: Config) -> dict[str, str]:
    """The sources of a run's identity, for people: keys of the configuration with their values."""
    keys = ("path", "test_path", "root", "images_root", "names")
    places = [f"data.{key}: {value}" for key in keys if (value := getattr(config.data, key, None))]
    data = ", ".join(places) or f"data.name: {config.data.name}"
    weights = f"model.pretrained: {config.model.pretrained}" if config.model.pretrained else f"model.name: {config.model.name}"
    table = getattr(config.partition, "path", None)  # the file that assigns images to clients
    clients = ", ".join([f"partition.name: {config.partition.name}", *([f"partition.path: {table}"] if table else []), data])
    parts = {title(part): f"{'--plugin ' * part.is_file}{part.source}" for part in configfile.own_parts(config)}
    return parts | {
        "captions": data,
        "labels": data,
        "split": data,
        "images": data,
        "clients": clients,
        "ranks": clients,
        "model weights": weights,
    }
