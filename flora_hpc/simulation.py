"""The jobs that ranks do together: run an experiment, test an adapter, compute all features."""

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from flora_hpc import __version__, embed, evaluate, prepare
from flora_hpc.clip import adapters
from flora_hpc.clip.load import load
from flora_hpc.comm import devices, tickets
from flora_hpc.comm.communicator import Communicator, same_everywhere, together
from flora_hpc.comm.launch import Launch
from flora_hpc.comm.meter import Meter
from flora_hpc.config import Config
from flora_hpc.data.images import Dataset
from flora_hpc.observers._background import Background
from flora_hpc.observers._observer import Observer
from flora_hpc.records.known import RunInfo
from flora_hpc.records.schema import TOPOLOGY, Rows
from flora_hpc.round import play


def run(
    config: Config,
    comm: Communicator,
    launch: Launch,
    out: Path,
    make_observers: Callable[[], Sequence[Observer]],
    started: float,
    progress: embed.Progress,
) -> None:
    """Run an experiment on all ranks of `comm` and leave its adapter in `out`.

    Observers are made and told on rank 0, of each round while the next one is played. The `progress` of features is shown there,
    too. `started` is when the program began, by time.perf_counter. Raises UserError, on every rank, for what the user must change;
    nothing is written then.
    """
    place = prepare.settle(config, comm, launch)
    meter = Meter(comm, idle=torch.cuda.synchronize if place.device.type == "cuda" else lambda: None)
    dataset, clip, fed = together(comm, lambda: prepare.everything(config, place.device, place.room))
    same_everywhere(comm, prepare.identity(config, dataset, clip, fed.shards))
    inputs, features = prepare.see(dataset, fed.method, place.work(config, clip, progress))
    if features.damaged:
        dataset = together(comm, lambda: prepare.without(dataset, features.damaged, config))
        fed = together(comm, lambda: prepare.federation(config, dataset, clip, place.device, place.room))
    mixes = together(comm, lambda: prepare.mixes(config, dataset, fed) if comm.rank == 0 else None)
    fed = replace(fed, inputs=inputs, mixes=mixes)
    if config.cohort.assignment == "dynamic" or config.evaluate.overlap:
        fed = replace(fed, tickets=tickets.share(comm, config.comm.timeout_seconds))
    state = prepare.first_state(fed, comm, place.device)
    if fed.method.sees == "features":
        del clip.model.visual  # its work is done, for all rounds
    topology = place_rows(devices.places(comm, launch, place.device, place.num_threads))
    observers = Background(make_observers() if comm.rank == 0 else [])
    info = RunInfo(
        seed=config.seed,
        config=with_group_size(config, fed.group_size).to_yaml(),
        versions=versions(),
        launcher=launch.launcher,
        backend=comm.name,
        world_size=comm.size,
        dataset=dataset.name,
        features=features.place,
        features_made_by=json.dumps({name: text for name, text in features.facts.items() if name != "damaged"}),
        num_features_computed=features.num_computed,
        num_damaged=len(features.damaged),
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
        together(comm, lambda: observers.started(info))
        meter.lap()
        for number in range(config.rounds + 1):
            records = play(fed, meter, state, number)
            with meter.phase("log"):
                for record in records:
                    observers.round(record)
        observers.settle()
        if comm.rank == 0:
            trained = fed.method.unpack(state.adapter.cpu())
            classes = dataset.wordings if fed.method.per_class else ()
            adapters.save(out / "adapter", clip.model, trained, fed.method.alpha, clip.name, config.method.name, classes)
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        if state.untested is not None:
            with suppress(Exception):  # what ended the run counts, not what follows from it
                observers.round(state.untested)
        observers.ended(status)


def with_group_size(config: Config, group_size: int) -> Config:
    """`config` with the size of groups that was chosen: it decides bits, and what is written down gives the same ones anywhere."""
    return config.model_copy(update={"client": config.client.model_copy(update={"group_size": group_size})})


def embed_all(config: Config, comm: Communicator, launch: Launch, progress: embed.Progress) -> tuple[Dataset, embed.Embedded]:
    """Compute and keep the features of all images that `config` names, on all ranks of `comm`. No method is needed for it.

    Raises UserError, on every rank, also when images cannot be decoded and `data.damaged` does not say to skip them; the features
    of the others are kept even so.
    """
    place = prepare.settle(config, comm, launch)
    dataset, clip = together(comm, lambda: (prepare.dataset(config), load(config.model, config.seed, place.device)))
    same_everywhere(comm, prepare.identity(config, dataset, clip))
    embedded = embed.embed(dataset.images, dataset.name, place.work(config, clip, progress))
    together(comm, lambda: prepare.without(dataset, embedded.damaged, config))
    return dataset, embedded


def measure(config: Config, adapter: Path, comm: Communicator, launch: Launch, progress: embed.Progress) -> tuple[str, int, int]:
    """Test a finished run's adapter on the data that `config` names, on all ranks of `comm`.

    Returns the dataset's name, the test images that get the highest score for their own class, and how many there are. Raises
    UserError, on every rank, when the adapter does not belong to the model, the method or the classes.
    """
    place = prepare.settle(config, comm, launch)
    dataset, clip, method = together(comm, lambda: prepare.for_test(config, place.device))
    trained = together(
        comm, lambda: adapters.load(adapter, method.shapes, clip.name, method.alpha, dataset.wordings if method.per_class else ())
    )
    dataset, inputs, features = prepare.see_test(dataset, method, place.work(config, clip, progress))
    dataset = together(comm, lambda: prepare.without(dataset, features.damaged, config))
    flat = method.pack(trained).to(place.device)
    labels, test = (torch.from_numpy(array).to(place.device) for array in (dataset.images.labels, dataset.test))
    correct = evaluate.count_correct(method, flat, inputs, labels, test, lambda n: range(comm.rank, n, comm.size))
    total = correct.sum(keepdims=True)
    comm.allreduce(total)
    return dataset.name, int(total[0]), len(dataset.test)


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
