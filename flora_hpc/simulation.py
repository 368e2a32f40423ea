"""The jobs that ranks do together: run an experiment, test an adapter, compute all features."""

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from flora_hpc import __version__, embed, evaluate, firststep, prepare
from flora_hpc.clip import adapters
from flora_hpc.clip.load import Clip, load
from flora_hpc.comm import devices, tickets
from flora_hpc.comm.communicator import AgreedError, Communicator, same_everywhere, together
from flora_hpc.comm.launch import Launch
from flora_hpc.comm.meter import Meter
from flora_hpc.comm.stop import Stop
from flora_hpc.comm.watchdog import Watchdog
from flora_hpc.config import Config
from flora_hpc.data import checks
from flora_hpc.data.images import Dataset
from flora_hpc.errors import StoppedError, UserError, reason
from flora_hpc.observers._background import Background
from flora_hpc.observers._observer import Observer
from flora_hpc.records.known import RunInfo
from flora_hpc.records.schema import TOPOLOGY, Rows
from flora_hpc.resume import Begin, Identity, Saved
from flora_hpc.round import AbandonedError, Federation, State, groups_of_ranks, play

SOON_SECONDS = 10.0  # to reach an address of rank 0's where a run can do without


def run(
    config: Config,
    comm: Communicator,
    launch: Launch,
    out: Path,
    make_observers: Callable[[], Sequence[Observer]],
    started: float,
    progress: embed.Progress,
    resume: bool = False,
    end: Callable[[str], None] = lambda why: None,
    holds: Callable[[], None] = lambda: None,
) -> None:
    """Run an experiment on all ranks of `comm` and leave its adapter in `out`; with `resume`, the one that `out` holds unfinished.

    Observers are made and told on rank 0, of each round while the next one is played. The `progress` of features is shown there,
    too. `started` is when the program began, by time.perf_counter. `end` says why ranks cannot go on, and ends the job.
    `holds` raises UserError when `out` belongs to another process now.
    Raises UserError, on every rank, for what the user must change; nothing is written then. Raises StoppedError, on every rank,
    when a signal ended the run and it can be gone on with.
    """
    stop = Stop(abandon=config.checkpoint.on_signal == "abandon")
    with stop.listening():
        place = prepare.settle(config, comm, launch)
        meter = Meter(comm, idle=torch.cuda.synchronize if place.device.type == "cuda" else lambda: None)
        dataset, clip, fed = together(comm, lambda: prepare.everything(config, place.device, place.room))
        same_everywhere(comm, alike := prepare.identity(config, dataset, clip, fed.shards))
        sources = prepare.sources(config)
        if resume:
            early = Saved(out, Identity(config.essence(), alike, sources))  # before the features of other images are computed
            together(comm, lambda: early.refuse_others() if comm.rank == 0 else None)
        inputs, features = prepare.see(dataset, fed.method, place.work(config, clip, progress))
        if features.damaged:
            dataset = together(comm, lambda: prepare.without(dataset, features.damaged, config))
            fed = together(comm, lambda: prepare.federation(config, dataset, clip, place.device, place.room))
        sentences = together(comm, lambda: prepare.warnings(dataset, fed, features, place) if comm.rank == 0 else [])
        mixes = together(comm, lambda: prepare.mixes(config, dataset, fed) if comm.rank == 0 else None)
        fed = replace(fed, inputs=inputs, mixes=mixes, stop=stop)
        fed = replace(fed, tickets=shared_tickets(config, comm))
        digests = {"model weights": alike["model weights"]} | prepare.data_identity(dataset, fed.shards)
        digests["images"] = features.digest or embed.images_digest(dataset.images, place.work(config, clip, progress))
        chosen = {"client.first_step": "jacobian" if fed.by_jacobian else "each"}
        if fed.grouping.fixed:
            chosen["client.group_size"] = str(fed.grouping.most)
        identity = Identity(config.essence(), digests, sources, chosen)
        saved = Saved(out, identity, holds)
        begin = saved.find(fed, comm, place.device) if resume else Begin(prepare.first_state(fed, comm, place.device))
        if fed.method.sees == "features":
            del clip.model.visual  # its work is done, for all rounds
        topology = place_rows(devices.places(comm, launch, place.device, place.num_threads))
        observers = Background(make_observers() if comm.rank == 0 else [])
        fed = replace(fed, trained=observers.trained)
        info = RunInfo(
            seed=config.seed,
            config=config.to_yaml(),
            versions=versions(),
            launcher=launch.launcher,
            backend=comm.name,
            world_size=comm.size,
            dataset=dataset.name,
            features=features.place,
            features_made_by=json.dumps({name: text for name, text in features.facts.items() if name != "damaged"}),
            num_features_computed=features.num_computed,
            num_damaged=len(features.damaged),
            left_out=dataset.left_out,
            warnings=checks.warned(dataset, sentences).warnings,
            identity=identity.all,
            topology=topology,
            num_rounds=config.rounds,
            num_clients=fed.shards.num_clients,
            num_params=fed.method.num_params,
            payload_bytes=fed.method.payload_bytes,
            how=f"{fed.method.how}; first step: {firststep.describe(fed.method, fed.by_jacobian)}",
            group_size=fed.grouping.most,
            num_groups=sum(map(len, groups_of_ranks(fed, comm.size, 1))),
            split=prepare.split(dataset, fed) if comm.rank == 0 else None,
            setup_seconds=time.perf_counter() - started,
            earlier=begin.earlier,
        )
        state, next_round, status = begin.state, begin.next_round, "failed"
        try:
            together(comm, lambda: observers.started(info))
            del begin  # with all rows of a run that goes on
            info = replace(info, earlier=None)
            meter.lap()
            hosts = [host.decode() for host in topology["host"].tolist()]
            with Watchdog(meter, hosts, config.comm.timeout_seconds, fed.tickets.board(), end, stop.came):
                play_rounds(config, fed, meter, state, next_round, observers, saved)
            together(comm, holds)
            if comm.rank == 0:
                trained = fed.method.unpack(state.adapter.cpu())
                classes = dataset.wordings if fed.method.per_class else ()
                save_adapter(out, clip, trained, fed.method.alpha, config.method.name, classes)
            status = "finished"
        except StoppedError:
            status = "stopped"
            raise
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            if state.untested is not None and status != "stopped":
                with suppress(Exception):  # what ended the run counts, not what follows from it
                    observers.round(state.untested)
            observers.ended(status)
        if comm.rank == 0:
            saved.finish(config.checkpoint.keeps_last)


def shared_tickets(config: Config, comm: Communicator) -> tickets.Tickets:
    """Tickets for idle ranks, whose store also tells which rank hangs.

    Raises UserError, on every rank, when they are needed and cannot be had; for the rest a job does without, and soon.
    """
    if config.cohort.assignment == "dynamic" or config.evaluate.overlap:
        return tickets.share(comm, config.comm.timeout_seconds)
    try:
        return tickets.share(comm, config.comm.timeout_seconds, SOON_SECONDS)
    except AgreedError:
        return tickets.Tickets()


def play_rounds(
    config: Config, fed: Federation, comm: Meter, state: State, first: int, observers: Background, saved: Saved
) -> None:
    """Play the rounds from `first` to the last, tell observers of them, and save what `checkpoint.every` asks for.

    Raises StoppedError, on every rank, when a signal asks for it, as soon as the state is saved.
    """
    last_saved = first - 1
    for number in range(first, config.rounds + 1):
        done, abandoned = number - 1, False
        if not (stopping := fed.stop.agreed(comm)):
            try:
                records = play(fed, comm, state, number)
                refuse_empty(config, comm, state, number, partial(observers.rounds, records))
            except AbandonedError:
                stopping = abandoned = True
        if stopping:
            moved_on = abandoned and fed.client.optimizer_state == "keep"  # optimizers are those of no round
            if done > last_saved and not moved_on:
                observers.rounds([], saved.write(fed, comm, state, done))
                last_saved = done
            together(comm, observers.settle)  # a rank that leaves early may have the others killed by its launcher
            where = f"after round {last_saved} of {config.rounds}" if last_saved >= 0 else "before round 0"
            how = "the same command with --resume goes on from there"
            raise StoppedError(f"a signal stopped the run {where}; {how}", last_saved - first + 1)
        due = config.checkpoint.every and number % config.checkpoint.every == 0
        due = config.checkpoint.keeps_last if number == config.rounds else due
        write = saved.write(fed, comm, state, number) if due else lambda: None
        last_saved = number if due else last_saved
        with comm.phase("log"):
            observers.rounds(records, write)
    observers.settle()


def refuse_empty(config: Config, comm: Meter, state: State, number: int, log: Callable[[], None]) -> None:
    """Raise AgreedError, on every rank, when clients have trained and every update was rejected; `log` keeps that round."""
    if number == 0 or state.weight:
        return
    together(comm, log)
    cure = f"lower client.lr ({config.client.lr:g}), or look for NaN and infinity in the model's weights and in the data"
    raise AgreedError(f"round {number}: every client's update was rejected, for none was finite and of a sane size; {cure}")


def save_adapter(
    out: Path, clip: Clip, trained: dict[str, torch.Tensor], alpha: float | None, method: str, classes: Sequence[str]
) -> None:
    """Write the adapter, whole or not at all; one that a run left when it was killed just then makes way.

    Raises UserError when it cannot be written.
    """
    part = out / "adapter.part"
    for folder in (part, out / "adapter"):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        adapters.save(part, clip.model, trained, alpha, clip.name, method, classes)
        part.rename(out / "adapter")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(
            f"{out / 'adapter'}: cannot be written ({reason(error)}); make room or make it writable, and go on with --resume"
        ) from None


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
