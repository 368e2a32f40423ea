"""Build everything a job needs from its Config: dataset, model, method, and what they see of the images."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch

from flora_hpc import embed, evaluate, firststep, groupsize, plugins, seeds
from flora_hpc.clip import identity as model_identity
from flora_hpc.clip import precision, weights
from flora_hpc.clip.load import Clip, load
from flora_hpc.cohort import Grouping
from flora_hpc.comm import devices
from flora_hpc.comm.communicator import Communicator, together
from flora_hpc.comm.exact import MAX_CLIENTS
from flora_hpc.comm.launch import Launch
from flora_hpc.config import Config
from flora_hpc.data import checks, look, mix, shards, twins
from flora_hpc.data.images import Dataset
from flora_hpc.data.inputs import Features, Inputs, Pixels
from flora_hpc.data.shards import PartitionOptions
from flora_hpc.data.store import Damage
from flora_hpc.errors import UserError
from flora_hpc.methods._method import Method, Setting
from flora_hpc.plugins import BaseOptions
from flora_hpc.records.split import Split
from flora_hpc.round import Federation, State

MANY = 0.1  # share of images looked at above which a user is warned of them: a few may be so in any data
SHOWN = 10  # damaged images named in a message


@dataclass(frozen=True)
class Place:
    """Where a rank works: its communicator, its device and its share of the cores."""

    comm: Communicator
    launch: Launch
    device: torch.device
    num_threads: int
    room: devices.Room

    def work(self, config: Config, clip: Clip, progress: embed.Progress) -> embed.Work:
        """What this rank needs to make features with `clip`."""
        return embed.Work(clip, config.features, self.comm, self.device, self.num_threads, self.launch.local_rank == 0, progress)


def settle(config: Config, comm: Communicator, launch: Launch) -> Place:
    """Find this rank's device and cores, and have rank 0 fetch the weights while the others wait."""
    device = together(comm, lambda: devices.pick(launch, config.comm))
    together(comm, lambda: precision.settle(config.model.precision, device))
    together(comm, lambda: precision.settle(config.features.compute, device, "features.compute"))
    room = devices.least_room(comm, devices.room(device, devices.sharing(comm, device)))
    place = Place(comm, launch, device, devices.share_cores(comm, launch), room)
    fill_cache(config, comm)
    return place


def fill_cache(config: Config, comm: Communicator) -> None:
    """Rank 0 fetches the weights, while the others wait; they then find them in the cache."""
    together(comm, lambda: weights.fetch(weights.find(config.model)) if comm.rank == 0 else None)


def everything(config: Config, device: torch.device, room: devices.Room) -> tuple[Dataset, Clip, Federation]:
    """Dataset, model and everything a round needs but the images themselves; nothing is sent. On device 'meta', shapes only.

    `room` is what all ranks have for a group of clients. Raises UserError for what does not exist or does not fit together.
    """
    images, clip = checks.checked(dataset(config)), load(config.model, config.seed, device)
    fed = federation(config, images, clip, device, room)
    return checks.warned(images, fed.method.warnings), clip, fed


def dataset(config: Config) -> Dataset:
    """The dataset that `config` names. Raises UserError when it is not there, or not what it should be."""
    found: Dataset = plugins.member("datasets", config.data.name).build(config.data)
    return found


def federation(config: Config, dataset: Dataset, clip: Clip, device: torch.device, room: devices.Room) -> Federation:
    """What stays the same in every round, but for the images. Raises UserError for what does not fit together."""
    images = dataset.images
    holders = shards.make(cast(PartitionOptions, config.partition), images, dataset.train, config.seed)
    method = build_method(config.method, config.model.precision, dataset, clip, holders)
    if config.evaluate.per_client and dataset.paired:
        raise UserError("evaluate.per_client: tests clients on their mix of classes, but pairs have none; leave it away")
    num_clients = config.cohort.num_clients(holders.num_clients)
    if num_clients > MAX_CLIENTS:
        raise UserError(
            f"cohort: {num_clients:,} clients in a round are more than the {MAX_CLIENTS:,} that an exact sum holds; lower it"
        )
    return Federation(
        seed=config.seed,
        rounds=config.rounds,
        cohort=config.cohort,
        client=config.client,
        evaluate=config.evaluate,
        method=method,
        aggregator=plugins.member("aggregators", config.aggregator.name).build(config.aggregator),
        shards=holders,
        grouping=Grouping(
            group_size(config, dataset, clip, method, holders, room)[0].clients, alike=method.per_example, fixed=room.gpu
        ),
        by_jacobian=by_jacobian(config, clip, method, num_clients, room.gpu),
        labels=torch.from_numpy(images.labels).to(device),
        test=torch.from_numpy(dataset.test).to(device),
    )


def group_size(
    config: Config, dataset: Dataset, clip: Clip, method: Method, holders: shards.Shards, room: devices.Room
) -> tuple[groupsize.GroupSize, groupsize.Load]:
    """How many clients of a round train in one batch of tensors at most, why no more, and what one of them takes."""
    client, num_clients = config.client, config.cohort.num_clients(holders.num_clients)
    crowd = by_jacobian(config, clip, method, num_clients, room.gpu)
    only_first = client.epochs == 1 and holders.largest <= client.batch_size
    load = groupsize.load(clip, method, client, len(dataset.captions), encodes=not (crowd and only_first))
    if client.group_size:
        return groupsize.GroupSize(client.group_size, "as client.group_size says"), load
    left = room._replace(num_bytes=max(0, room.num_bytes - firststep.num_bytes(method, crowd)))
    return groupsize.choose(num_clients, load, left), load


def by_jacobian(config: Config, clip: Clip, method: Method, num_clients: int, on_gpu: bool) -> bool:
    """Whether a cohort's `num_clients` make their first step by a Jacobian. Raises UserError when they must and cannot."""
    text = groupsize.tower(getattr(clip.model, "text", clip.model))
    backward = 24 * text.blocks * text.width**2  # as much as forwards: weights are frozen
    return firststep.choose(config.client.first_step, method, on_gpu, num_clients, backward)


def for_test(config: Config, device: torch.device) -> tuple[Dataset, Clip, Method]:
    """Dataset, model and method, where nobody trains: one client stands for all."""
    images, clip = dataset(config), load(config.model, config.seed, device)
    checks.refuse_alike(images)
    everyone = shards.Partition(images.train, np.array([0, len(images.train)]))
    return images, clip, build_method(config.method, config.model.precision, images, clip, everyone)


def build_method(options: BaseOptions, number_format: str, dataset: Dataset, clip: Clip, holders: shards.Shards) -> Method:
    """The method that `options` are of, and the frozen layers of `clip` in its `number_format`, model.precision.

    Raises UserError when it does not fit the model, the data or its options.
    """
    setting = Setting(clip, dataset.wordings, dataset.captions, holders, dataset.images.labels, dataset.paired)
    method: Method = plugins.member("methods", options.name).build(options, setting)
    tokens = clip.tokenize(list(method.prompts)) if method.prompts else setting.tokens
    text, image = method.text_positions + method.caption_positions > 0, method.image_positions > 0
    precision.lower(number_format, clip.model, clip.name, options.name, set(method.shapes), text, image)
    return replace(method, paired=dataset.paired, warnings=told_apart(dataset, tokens))


def told_apart(dataset: Dataset, tokens: torch.Tensor) -> tuple[str, ...]:
    """Warnings about captions that the model cannot tell apart. `tokens` (num_captions, context_length) are what it sees of them.

    Raises UserError where they belong to two classes.
    """
    alike = checks.alike(twins.marks(tokens.int()).tolist())
    if not alike:
        return ()
    first, other = alike[0]
    length, most = int(tokens[first].argmax()) + 1, tokens.shape[1]
    shared = f"the same {length} tokens for the model" + (f", which cuts captions at {most}" if length == most else "")
    if not dataset.paired:
        raise UserError(checks.not_told_apart(dataset, alike, shared))
    return (
        f"{len(alike):,} of {len(dataset.captions):,} captions have the same tokens as another one, such as "
        f"'{dataset.captions[first]}' and '{dataset.captions[other]}' ({shared}), so that only one of them can win",
    )


def see(dataset: Dataset, method: Method, work: embed.Work) -> tuple[Inputs, embed.Embedded]:
    """What `method` sees of the images: features, from the store or computed by all ranks together, or pixels, read by each rank.

    Also how the features were come by, and which images cannot be decoded.
    """
    if method.sees == "pixels":
        damaged = embed.find_damage(dataset.images, work)
        pixels = Pixels(dataset.images, work.clip.preprocess, work.device, work.num_threads)
        return pixels, embed.Embedded(torch.empty(0), damaged, place="")
    embedded = embed.embed(dataset.images, dataset.name, work)
    return Features.near(embedded.values, work.device), embedded


def see_test(dataset: Dataset, method: Method, work: embed.Work) -> tuple[Dataset, Inputs, embed.Embedded]:
    """What `method` sees of the test images, and a dataset whose rows belong to that: the whole one where its features are kept."""
    kept = embed.find(dataset.images, work) if method.sees == "features" else None
    if kept is not None:
        damaged = {row: why for row, why in kept.damaged.items() if row in set(dataset.test.tolist())}
        return dataset, Features.near(kept.values, work.device), replace(kept, damaged=damaged)
    alone = replace(dataset, images=dataset.images.take(dataset.test), train=dataset.train[:0], test=np.arange(len(dataset.test)))
    return alone, *see(alone, method, work)


def mixes(config: Config, dataset: Dataset, fed: Federation) -> evaluate.Mixes | None:
    """The mixes of clients that are tested on their own, if any are."""
    if not config.evaluate.per_client:
        return None
    return evaluate.mixes(fed.shards, dataset.images.labels, dataset.test, len(dataset.captions))


def split(dataset: Dataset, fed: Federation) -> Split | None:
    """Who holds which classes, for the run's file; None where every image has a caption of its own."""
    if dataset.paired:
        return None
    return Split(*mix.counts_of(fed.shards, dataset.images.labels, len(dataset.wordings)), dataset.wordings)


def without(dataset: Dataset, damaged: Damage, config: Config) -> Dataset:
    """The dataset without images that cannot be decoded. Raises UserError, naming them, unless `data.damaged` says to skip them."""
    if damaged and getattr(config.data, "damaged", "refuse") == "refuse":
        named = [f"{dataset.images.where(row)}: {why}" for row, why in sorted(damaged.items())]
        more = f"; and {len(named) - SHOWN:,} more" if len(named) > SHOWN else ""
        raise UserError(
            f"data: {len(named):,} of {len(dataset.images):,} images cannot be decoded ({'; '.join(named[:SHOWN])}{more}); "
            "mend or remove them, or set data.damaged: skip to leave them out"
        )
    kept = dataset.drop(list(damaged))
    if len(kept.test) == 0 or (len(dataset.train) and len(kept.train) == 0):
        raise UserError(f"data: {len(damaged):,} of {len(dataset.images):,} images cannot be decoded; too few are left")
    return checks.checked(kept) if len(dataset.train) else kept


def warnings(dataset: Dataset, fed: Federation, features: embed.Embedded, place: Place) -> list[str]:
    """Sentences that a user must read before round 0, from a few pictures themselves and from the features of all."""
    rows = look.sample(np.concatenate([dataset.train, dataset.test]))
    sentences = look.look(dataset.images, rows, place.num_threads).warnings(dataset.images, MANY)
    same = twins.warnings(dataset, features.values) if fed.method.sees == "features" else []
    return [*sentences, *same]


def identity(config: Config, dataset: Dataset, clip: Clip, holders: shards.Shards | None = None) -> dict[str, str]:
    """Digests of what must be alike on all ranks, or their groups and updates would not belong together."""
    weights = {"model weights": model_identity.module(clip.model)}
    return {"configuration": config.to_yaml()} | weights | data_identity(dataset, holders)


def data_identity(dataset: Dataset, holders: shards.Shards | None = None) -> dict[str, str]:
    """Digests of what decides the results of a run, of its data: all but the images themselves."""
    held = [holders.order, holders.starts] if isinstance(holders, shards.Partition) else []
    parts = {
        "captions": [json.dumps([dataset.captions, dataset.wordings]).encode()],
        "labels": [dataset.images.labels.tobytes()],
        "split": [rows.tobytes() for rows in (dataset.train, dataset.test)],
        "clients": [rows.tobytes() for rows in held],
    }
    return {name: hashlib.blake2b(b"\0".join(data), digest_size=16).hexdigest() for name, data in parts.items()}


def sources(config: Config) -> dict[str, str]:
    """Where the parts of a run's identity come from, for people: keys of the configuration with their values."""
    keys = ("path", "test_path", "root", "images_root", "names")
    places = [f"data.{key}: {value}" for key in keys if (value := getattr(config.data, key, None))]
    data = ", ".join(places) or f"data.name: {config.data.name}"
    weights = f"model.pretrained: {config.model.pretrained}" if config.model.pretrained else f"model.name: {config.model.name}"
    clients = f"partition.name: {config.partition.name}, {data}"
    return {"captions": data, "labels": data, "split": data, "images": data, "clients": clients, "model weights": weights}


def first_state(fed: Federation, comm: Communicator, device: torch.device) -> State:
    """The adapter before training: rank 0's, sent to all once."""
    adapter = fed.method.pack(fed.method.init(seeds.generator(fed.seed, "initial adapter")))
    comm.broadcast(adapter.numpy())
    adapter = adapter.to(device)
    return State(adapter, fed.aggregator.init(adapter), {})
