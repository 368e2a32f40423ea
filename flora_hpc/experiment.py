"""Build an experiment from its Config: the data, the model, and the setup of its rounds."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from flora_hpc import building, embed, evaluate, firstgradient, footprint, plugins, seeds
from flora_hpc.accuracy import AdapterTests
from flora_hpc.attacks._attack import Trigger
from flora_hpc.clip import identity as model_identity
from flora_hpc.clip import weights
from flora_hpc.clip.load import Clip, load
from flora_hpc.comm import devices
from flora_hpc.comm.communicator import same_everywhere, together
from flora_hpc.config import Config
from flora_hpc.data import checks, look, mix, triggered, twins
from flora_hpc.data.images import Dataset, Ints, with_validation
from flora_hpc.data.inputs import Features, Inputs, Pixels
from flora_hpc.data.store import Damage
from flora_hpc.errors import UserError
from flora_hpc.identity import Identity, of_data, of_parts, sources
from flora_hpc.memories import Memories
from flora_hpc.methods._method import Method
from flora_hpc.records.split import Split
from flora_hpc.round import State
from flora_hpc.setup import Setup, Site
from flora_hpc.shared import NothingShared, Shared

MAX_ODD_SHARE = 0.1  # a user is warned of more odd images than this share of those examined; any data has a few
SHOWN = 10  # damaged images named in a message


@dataclass(frozen=True)
class Experiment:
    """Data, model and setup of a run. `build` makes all but the images' features or pixels; `with_inputs` adds them."""

    config: Config
    dataset: Dataset
    clip: Clip  # no other run uses its modules; other runs may share its tensors
    setup: Setup
    weights: str = ""  # digest of the model's weights
    features: embed.Embedded = field(default_factory=lambda: embed.Embedded(torch.empty(0)))  # of all images, and their origin

    @property
    def digests(self) -> dict[str, str]:
        """Digests of data and weights, which decide results, and of the images once `with_inputs` has read them."""
        images = {"images": self.features.digest} if self.features.digest else {}
        data = of_data(self.dataset, self.setup.holdings, ranks_of_column(self.setup))
        return {"model weights": self.weights} | data | images | of_parts(self.config)

    @property
    def identity(self) -> Identity:
        """Everything that decides the results of the run."""
        chosen = {"client.first_step": "jacobian" if self.setup.by_jacobian else "each"}
        if self.setup.grouping.fixed:
            chosen["client.group_size"] = str(self.setup.grouping.most)
        return Identity(self.config.essence(), self.digests, sources(self.config), chosen)

    def work(self, site: Site, progress: embed.Progress) -> embed.Work:
        """The tools of a rank for making features with the experiment's model."""
        return work(self.clip, self.config, site, progress)


def ranks_of_column(setup: Setup) -> Ints | None:
    """The rank of each client's adapter (num_clients,) where a column says it; None where the rest of the data decides it."""
    portions = setup.method.portions
    if portions is None or portions.ranks is None or not portions.by_column:
        return None
    return portions.ranks(np.arange(setup.holdings.num_clients))


def work(clip: Clip, config: Config, site: Site, progress: embed.Progress) -> embed.Work:
    """The tools of a rank for making features with `clip`. One rank of each node reads the times of files."""
    return embed.Work(clip, config.features, site.comm, site.device, site.num_threads, site.first_on_node, progress)


def build_together(config: Config, site: Site, shared: Shared | None = None) -> Experiment:
    """Call `build` on every rank. Raises AgreedError, on every rank, unless all ranks have built the same."""
    shared = shared or NothingShared()
    experiment = together(site.comm, lambda: build(config, site.device, site.room, shared, site.comm.size))
    is_bf16 = config.model.precision == "bf16"  # of which layers, the method decides, so the digest is this run's own
    weights = (NothingShared() if is_bf16 else shared).recall(
        "weights", _model_key(config, site.device), lambda: model_identity.module(experiment.clip.model)
    )
    experiment = replace(experiment, weights=weights)
    same_everywhere(site.comm, {"configuration": config.model_dump_json()} | experiment.digests)
    return experiment


def build(
    config: Config, device: torch.device, room: devices.Room, shared: Shared | None = None, num_ranks: int | None = None
) -> Experiment:
    """Build dataset, model and setup, without features or pixels; nothing is sent. On device 'meta' the model has shapes only.

    `room` is the memory that every rank has for a group. Raises UserError for parts that do not exist or do not fit together, and
    for memories or updates of clients that `num_ranks` ranks have no room for.
    """
    shared = shared or NothingShared()
    images = checks.checked(shared.recall("dataset", _data_key(config), lambda: dataset(config)))
    clip = own_clip(config, device, shared)
    setup = building.make_setup(config, images, clip, device, room)
    if num_ranks is not None:
        footprint.refuse_large_memories(setup, num_ranks, host_room(room))
        footprint.refuse_large_updates(setup, num_ranks, host_room(room))
    warnings = (*setup.holdings.warnings, *setup.method.warnings, *setup.federation.warnings)
    return Experiment(config, checks.warned(images, warnings), clip, setup)


def own_clip(config: Config, device: torch.device, shared: Shared) -> Clip:
    """The model that `config` names, in new modules: a run may change them without effect on other runs."""
    clip = shared.recall("model", _model_key(config, device), lambda: load(config.model, config.seed, device))
    return clip if isinstance(shared, NothingShared) else clip.copy()


def _model_key(config: Config, device: torch.device) -> tuple[str, int | None, str]:
    """Everything that decides the model and its weights."""
    seed = config.seed if weights.find(config.model).random else None
    return config.model.model_dump_json(), seed, str(device)


def _data_key(config: Config) -> tuple[str, str, str]:
    """Everything that decides the dataset, but for its files: a user's own code, and the folder that paths are relative to."""
    part = plugins.own_part("datasets", config.data.name)
    return config.data.model_dump_json(), part.digest if part else "", str(Path.cwd())


def dataset(config: Config) -> Dataset:
    """Build the dataset that `config` names, with its validation images. Raises UserError when its files are missing or wrong."""
    return with_validation(plugins.build("datasets", config.data, Dataset), getattr(config.data, "validation_fraction", 0))


def with_inputs(experiment: Experiment, site: Site, progress: embed.Progress, shared: Shared | None = None) -> Experiment:
    """Add the method's inputs (features or pixels) to the experiment, and drop images that cannot be decoded. All ranks call this.

    Raises UserError, on every rank, for images that cannot be decoded, unless `data.damaged` says to skip them.
    """
    config, shared = experiment.config, shared or NothingShared()
    sees = experiment.setup.method.sees
    key = (_model_key(config, site.device), _data_key(config), config.features.model_dump_json(), sees)
    features = shared.recall("features", key, lambda: features_and_digest(experiment, site, progress))
    shared.keep("features", key, replace(features, num_computed=0))
    experiment = replace(experiment, features=features)
    if features.damaged:
        dataset = together(site.comm, lambda: drop_damaged(experiment.dataset, features.damaged, config))
        setup = together(site.comm, lambda: building.make_setup(config, dataset, experiment.clip, site.device, site.room))
        experiment = replace(experiment, dataset=dataset, setup=setup)
    inputs = inputs_of(experiment.dataset, experiment.setup.method, experiment.work(site, progress), features)
    if experiment.setup.federation.trigger is not None:
        inputs = with_triggered(experiment, inputs, experiment.setup.federation.trigger, experiment.work(site, progress), shared)
    return replace(experiment, setup=replace(experiment.setup, inputs=inputs))


def with_triggered(experiment: Experiment, clean: Inputs, trigger: Trigger, work: embed.Work, shared: Shared) -> Inputs:
    """The inputs of clean images, and after them of all images with the trigger of a backdoor. All ranks call this."""
    config, dataset, method = experiment.config, experiment.dataset, experiment.setup.method
    stamp = triggered.Stamp(work.clip.preprocess, trigger.size, trigger.place)
    work = replace(work, clip=replace(work.clip, preprocess=stamp), mark=f"a square of {trigger.size} {trigger.place}")
    key = (_model_key(config, work.device), _data_key(config), config.features.model_dump_json(), method.sees, work.mark)
    if method.sees == "features":
        features = shared.recall("triggered features", key, lambda: embed.embed(dataset.images, dataset.name, work))
    else:
        features = experiment.features
    return triggered.WithTriggered(clean, inputs_of(dataset, method, work, features), len(dataset.images))


def features_and_digest(experiment: Experiment, site: Site, progress: embed.Progress) -> embed.Embedded:
    """The features of all images where the method sees features, the images that cannot be decoded, and a digest of all images."""
    dataset, work = experiment.dataset, experiment.work(site, progress)
    features = embed_for(dataset, experiment.setup.method, work)
    return features if features.digest else replace(features, digest=embed.images_digest(dataset.images, work))


def embed_for(dataset: Dataset, method: Method, work: embed.Work) -> embed.Embedded:
    """Features, from the store or computed (none for a method that sees pixels), and the images that cannot be decoded."""
    if method.sees == "pixels":
        return embed.Embedded(torch.empty(0), embed.find_damage(dataset.images, work), place="")
    return embed.embed(dataset.images, dataset.name, work)


def inputs_of(dataset: Dataset, method: Method, work: embed.Work, features: embed.Embedded) -> Inputs:
    """The inputs of `method`: features, or pixels, which each rank reads."""
    if method.sees == "pixels":
        return Pixels(dataset.images, work.clip.preprocess, work.device, work.num_threads)
    return Features.near(features.values, work.device)


def mixes(experiment: Experiment) -> evaluate.Mixes | None:
    """The mixes of clients that are tested on their own; None without `evaluate.per_client`.

    Raises UserError when no client could be tested on its own, with `evaluate.per_client` or `evaluate.personal`.
    """
    dataset, options, result = experiment.dataset, experiment.setup.evaluate, None
    for key, is_set in (("evaluate.per_client", options.per_client), ("evaluate.personal", options.personal)):
        if is_set and result is None:
            holders = experiment.setup.holdings
            result = evaluate.mixes(holders, dataset.images.labels, dataset.test, len(dataset.captions), key)
    return result if options.per_client else None


def split(experiment: Experiment) -> Split | None:
    """The clients' counts of classes, for the run's file; None where every image has a caption of its own."""
    dataset = experiment.dataset
    if dataset.paired:
        return None
    return Split(*mix.counts_of(experiment.setup.holdings, dataset.images.labels, len(dataset.wordings)), dataset.wordings)


def drop_damaged(dataset: Dataset, damaged: Damage, config: Config) -> Dataset:
    """Drop the images that cannot be decoded. Raises UserError, naming them, unless `data.damaged` says to skip them."""
    if damaged and getattr(config.data, "damaged", "refuse") == "refuse":
        named = [f"{dataset.images.where(row)}: {why}" for row, why in sorted(damaged.items())]
        more = f"; and {len(named) - SHOWN:,} more" if len(named) > SHOWN else ""
        raise UserError(
            f"data: {len(named):,} of {len(dataset.images):,} images cannot be decoded ({'; '.join(named[:SHOWN])}{more}); "
            "mend or remove them, or set data.damaged: skip to leave them out"
        )
    usable = dataset.drop(list(damaged))
    parts = ((dataset.train, usable.train), (dataset.validation, usable.validation))
    if len(usable.test) == 0 or any(len(before) and not len(after) for before, after in parts):
        raise UserError(f"data: {len(damaged):,} of {len(dataset.images):,} images cannot be decoded; too few are left")
    return checks.checked(usable) if len(dataset.train) else usable


def warnings(experiment: Experiment, num_threads: int) -> list[str]:
    """Sentences that a user must read before round 0, from the pixels of a few images and from the features of all images."""
    dataset = experiment.dataset
    rows = look.sample(np.concatenate([dataset.train, dataset.test, dataset.validation]))
    of_pixels = look.inspect(dataset.images, rows, num_threads).warnings(dataset.images, MAX_ODD_SHARE)
    of_features = twins.warnings(dataset, experiment.features.values) if experiment.setup.method.sees == "features" else []
    return [*of_pixels, *of_features]


def first_state(experiment: Experiment, site: Site) -> State:
    """The state before training."""
    adapter = initial_adapter(experiment, site)
    server = experiment.setup.federation.server.init(adapter)
    return State(adapter, server, tests(experiment, site), memories(experiment, site, adapter))


def initial_adapter(experiment: Experiment, site: Site) -> torch.Tensor:
    """The adapter (num_params,) before training: rank 0 broadcasts it to all ranks, once, or it follows from clients' gradients."""
    setup = experiment.setup
    if setup.method.first_gradient is not None:
        return firstgradient.initial_adapter(setup, site).to(site.device)
    adapter = setup.method.pack(setup.method.init(seeds.generator(setup.seed, "initial adapter")))
    site.comm.broadcast(adapter.numpy())
    return adapter.to(site.device)


def memories(experiment: Experiment, site: Site, adapter: torch.Tensor) -> Memories | None:
    """Memories of clients, none of which is there yet; None where clients remember nothing. `adapter` is the initial one."""
    setup = experiment.setup
    initial = setup.federation.memory(adapter, setup.client)
    return Memories(site.comm, initial, host_room(site.room)) if initial else None


def host_room(room: devices.Room) -> int:
    """Bytes of the host's memory that a rank may fill with memories of clients; `room` may be a GPU's."""
    return devices.room(torch.device("cpu")).num_bytes if room.gpu else room.num_bytes


def tests(experiment: Experiment, site: Site) -> AdapterTests:
    """The tests of this experiment's adapters; rank 0 has the clients' mixes of classes."""
    return AdapterTests(experiment.setup, site, together(site.comm, lambda: mixes(experiment) if site.comm.rank == 0 else None))
