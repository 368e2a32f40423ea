"""Build everything from a Config and play the rounds."""

import hashlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

import numpy as np
import torch

from flora_hpc import __version__, cohort, evaluate, plugins, seeds
from flora_hpc.clip import adapters, weights
from flora_hpc.clip.load import Clip, load
from flora_hpc.comm import devices
from flora_hpc.comm.communicator import Communicator, same_everywhere, together
from flora_hpc.comm.exact import MAX_CLIENTS
from flora_hpc.comm.launch import Launch
from flora_hpc.comm.meter import Meter
from flora_hpc.config import Config
from flora_hpc.data import features, shards
from flora_hpc.data.images import Dataset, Images
from flora_hpc.data.inputs import Features, Pixels
from flora_hpc.data.shards import PartitionOptions
from flora_hpc.errors import UserError
from flora_hpc.methods._method import Method, Setting
from flora_hpc.observers._observer import Observer
from flora_hpc.records.known import RunInfo
from flora_hpc.records.schema import TOPOLOGY, Rows
from flora_hpc.round import Examples, Federation, State, play


def run(
    config: Config,
    comm: Communicator,
    launch: Launch,
    out: Path,
    make_observers: Callable[[], Sequence[Observer]],
    started: float,
) -> None:
    """Run an experiment on all ranks of `comm` and leave its adapter in `out`.

    Observers are made and told on rank 0. `started` is when the program began, by time.perf_counter. Raises UserError, on
    every rank, for what the user must change; nothing is written then.
    """
    device = together(comm, lambda: devices.pick(launch, config.comm))
    num_threads = devices.share_cores(comm, launch)
    meter = Meter(comm, idle=torch.cuda.synchronize if device.type == "cuda" else lambda: None)
    fill_cache(config, comm)
    dataset, clip, fed = together(comm, lambda: prepare(config, device))
    same_everywhere(comm, identity(config, dataset, clip))
    train, test = (examples(images, fed.method, clip, comm, device) for images in (dataset.train, dataset.test))
    fed = replace(fed, train=train, test=test)
    state = first_state(fed, comm, device)
    if fed.method.sees == "features":
        del clip.model.visual  # its work is done, for all rounds
    topology = place_rows(devices.places(comm, launch, device, num_threads))
    observers = make_observers() if comm.rank == 0 else []
    info = RunInfo(
        seed=config.seed,
        config=config.to_yaml(),
        versions=versions(),
        launcher=launch.launcher,
        backend=comm.name,
        world_size=comm.size,
        dataset=dataset.name,
        topology=topology,
        num_rounds=config.rounds,
        num_clients=fed.shards.num_clients,
        num_params=fed.method.num_params,
        payload_bytes=fed.method.payload_bytes,
        how=fed.method.how,
        group_size=fed.group_size,
        num_groups=-(-config.cohort.num_clients(fed.shards.num_clients) // fed.group_size),
        setup_seconds=time.perf_counter() - started,
    )
    status = "failed"
    try:
        together(comm, lambda: tell_started(observers, info))
        meter.lap()
        for number in range(config.rounds + 1):
            record = play(fed, meter, state, number)
            with meter.phase("log"):
                if record is not None:
                    for observer in observers:
                        observer.round(record)
        if comm.rank == 0:
            trained = fed.method.unpack(state.adapter.cpu())
            classes = dataset.wordings if fed.method.per_class else ()
            adapters.save(out / "adapter", clip.model, trained, fed.method.alpha, clip.name, config.method.name, classes)
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        for observer in observers:
            observer.ended(status)


def fill_cache(config: Config, comm: Communicator) -> None:
    """Rank 0 fetches the weights, while the others wait; they then find them in the cache."""
    together(comm, lambda: weights.fetch(weights.find(config.model)) if comm.rank == 0 else None)


def measure(config: Config, adapter: Path, comm: Communicator, launch: Launch) -> tuple[str, int, int]:
    """Test a finished run's adapter on the data that `config` names, on all ranks of `comm`.

    Returns the dataset's name, the test images that get the highest score for their own class, and how many there are. Raises
    UserError, on every rank, when the adapter does not belong to the model, the method or the classes.
    """
    device = together(comm, lambda: devices.pick(launch, config.comm))
    devices.share_cores(comm, launch)
    fill_cache(config, comm)
    dataset, clip, method = together(comm, lambda: prepare_test(config, device))
    trained = together(
        comm, lambda: adapters.load(adapter, method.shapes, clip.name, method.alpha, dataset.wordings if method.per_class else ())
    )
    test = examples(dataset.test, method, clip, comm, device)
    flat = method.pack(trained).to(device)
    correct = np.array([evaluate.count_correct(method, flat, test.inputs, test.labels, comm.rank, comm.size)], np.int64)
    comm.allreduce(correct)
    return dataset.name, int(correct[0]), len(test.labels)


def prepare_test(config: Config, device: torch.device) -> tuple[Dataset, Clip, Method]:
    """Dataset, model and method, where nobody trains: one client stands for all."""
    dataset: Dataset = plugins.member("datasets", config.data.name).build(config.data)
    num_images = len(dataset.train.labels)
    everything = shards.Partition(np.arange(num_images), np.array([0, num_images]))
    clip = load(config.model, config.seed, device)
    setting = Setting(clip, dataset.wordings, dataset.captions, everything, dataset.train.labels)
    method: Method = plugins.member("methods", config.method.name).build(config.method, setting)
    return dataset, clip, method


def prepare(config: Config, device: torch.device) -> tuple[Dataset, Clip, Federation]:
    """Dataset, model and everything a round needs but the images' features; nothing is sent. On device 'meta', shapes only.

    Raises UserError for what does not exist or does not fit together.
    """
    dataset: Dataset = plugins.member("datasets", config.data.name).build(config.data)
    holders = shards.make(cast(PartitionOptions, config.partition), dataset.train.labels, config.seed)
    clip = load(config.model, config.seed, device)
    setting = Setting(clip, dataset.wordings, dataset.captions, holders, dataset.train.labels)
    method: Method = plugins.member("methods", config.method.name).build(config.method, setting)
    rows = method.text_positions + config.client.batch_size * method.image_positions
    num_clients = config.cohort.num_clients(holders.num_clients)
    if num_clients > MAX_CLIENTS:
        raise UserError(
            f"cohort: {num_clients:,} clients in a round are more than the {MAX_CLIENTS:,} that an exact sum holds; lower it"
        )
    fed = Federation(
        seed=config.seed,
        rounds=config.rounds,
        cohort=config.cohort,
        client=config.client,
        evaluate=config.evaluate,
        method=method,
        aggregator=plugins.member("aggregators", config.aggregator.name).build(config.aggregator),
        shards=holders,
        group_size=config.client.group_size or cohort.default_group_size(num_clients, rows, method.num_params),
        rows_per_client=rows,
    )
    return dataset, clip, fed


def identity(config: Config, dataset: Dataset, clip: Clip) -> dict[str, str]:
    """Digests of what must be alike on all ranks, or their groups and updates would not belong together."""
    weights = hashlib.blake2b(digest_size=8)
    for tensor in clip.model.state_dict().values():
        weights.update(tensor.cpu().numpy().tobytes())
    labels = hashlib.blake2b(dataset.train.labels.tobytes() + dataset.test.labels.tobytes(), digest_size=8)
    return {
        "configuration": config.to_yaml(),
        "captions": "|".join(dataset.captions),
        "labels": labels.hexdigest(),
        "model weights": weights.hexdigest(),
    }


def examples(images: Images, method: Method, clip: Clip, comm: Communicator, device: torch.device) -> Examples:
    """What `method` sees of the images: features, computed by all ranks together, or pixels, which each rank reads for itself."""
    labels = torch.from_numpy(images.labels).to(device)
    if method.sees == "pixels":
        return Examples(Pixels(images, clip.preprocess, device), labels)
    mine = together(comm, lambda: features.encode(images, clip.model, clip.preprocess, device, comm.rank, comm.size))
    everything = features.assemble(comm.allgather(mine.tobytes()), len(images.labels))
    return Examples(Features(torch.from_numpy(everything).to(device)), labels)


def first_state(fed: Federation, comm: Communicator, device: torch.device) -> State:
    """The adapter before training: rank 0's, sent to all once."""
    adapter = fed.method.pack(fed.method.init(seeds.generator(fed.seed, "initial adapter")))
    comm.broadcast(adapter.numpy())
    adapter = adapter.to(device)
    return State(adapter, fed.aggregator.init(adapter), {})


def tell_started(observers: Sequence[Observer], info: RunInfo) -> None:
    """Tell every observer; it may raise UserError, for example when the run directory cannot be written."""
    for observer in observers:
        observer.started(info)


def place_rows(places: list[devices.Place]) -> Rows:
    """The rows of /topology."""
    return np.array([(p.rank, p.host, p.local_rank, p.device, p.num_threads) for p in places], TOPOLOGY)


def versions() -> dict[str, str]:
    """Versions and settings of what decides the numbers."""
    found = {"flora_hpc": __version__, "python": platform.python_version()}
    for package in ("torch", "open_clip_torch", "peft", "numpy", "h5py", "mpi4py", "mpich", "openmpi"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"MKL_CBWR": os.environ.get("MKL_CBWR", "")}
