"""Play the rounds of an experiment: notify observers, save checkpoints, and end the run with the right status."""

import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from flora_hpc import configfile, embed, experiment, firststep
from flora_hpc.clip import adapters
from flora_hpc.comm import counters, devices
from flora_hpc.comm.communicator import AgreedError, Communicator, together
from flora_hpc.comm.devices import Neighbours
from flora_hpc.comm.launch import Launch
from flora_hpc.comm.stop import Stop
from flora_hpc.comm.watchdog import Watchdog
from flora_hpc.config import Config
from flora_hpc.data import checks
from flora_hpc.errors import StoppedError, UserError, reason
from flora_hpc.experiment import Experiment
from flora_hpc.identity import title
from flora_hpc.observers._background import Background
from flora_hpc.observers._observer import Observer
from flora_hpc.records.known import RoundRecord, RunInfo
from flora_hpc.records.schema import SETUP, TOPOLOGY, Rows
from flora_hpc.resume import Begin, Saved
from flora_hpc.round import AbandonedError, State, groups_of_ranks, play
from flora_hpc.setup import Site, find_site
from flora_hpc.shared import Shared
from flora_hpc.versions import versions

OPTIONAL_STORE_SECONDS = 10.0  # to reach rank 0's store when the run can do without it


@dataclass(frozen=True)
class RunOptions:
    """Options of a run outside its configuration: directory, observers, and how the run begins and ends."""

    out: Path  # the run directory
    make_observers: Callable[[], Sequence[Observer]] = tuple  # called on rank 0, which notifies the observers
    progress: embed.Progress = lambda done, total: None  # of making features, called on rank 0
    started: float = field(default_factory=time.perf_counter)  # when the program began, by time.perf_counter
    resume: bool = False  # resume the unfinished run in `out`
    abort_job: Callable[[str], None] = lambda why: None  # shows why ranks cannot continue, and ends the job
    check_ownership: Callable[[], None] = lambda: None  # raises UserError when `out` belongs to another process now
    stop: Stop = field(default_factory=Stop)  # notes signals that stop the run, while its `listening` is entered
    neighbours: Neighbours | None = None  # of the whole job, where `comm` is only a part of it
    shared: Shared | None = None  # model, data and features that the runs of this process share


def run(config: Config, comm: Communicator, launch: Launch, options: RunOptions) -> None:
    """Run an experiment on all ranks of `comm`, or resume the run in `options.out`; write the adapter to `options.out`.

    Raises UserError, on every rank, for mistakes that the user must correct; nothing is written then. Raises StoppedError, on every
    rank, when a signal stopped the run and it can be resumed.
    """
    stop, moments = options.stop, [options.started, time.perf_counter()]
    stop.abandon = config.checkpoint.on_signal == "abandon"
    site = find_site(config, comm, launch, stop, options.neighbours)
    built = experiment.build_together(config, site, options.shared)
    if options.resume:  # before the features of other images are computed
        checkpoints = Saved(options.out, built.identity)
        together(comm, lambda: checkpoints.refuse_others() if comm.rank == 0 else None)
    moments.append(time.perf_counter())
    built = experiment.with_inputs(built, site, options.progress, options.shared)
    moments.append(time.perf_counter())
    warnings = together(comm, lambda: experiment.warnings(built, site.num_threads) if comm.rank == 0 else [])
    site = replace(site, counters=shared_counters(config, site))
    saved = Saved(options.out, built.identity, options.check_ownership)
    begin = saved.find(built, site) if options.resume else Begin(experiment.first_state(built, site))
    if built.setup.method.sees == "features":
        del built.clip.model.visual  # all features are made, so no round needs the image tower
    observers = Background(options.make_observers() if comm.rank == 0 else [])
    site = replace(site, trained=observers.trained)
    topology = place_rows(devices.places(comm, launch, site.device, site.num_threads))
    info = replace(run_info(built, site, topology), warnings=checks.warned(built.dataset, warnings).warnings)
    moments.append(time.perf_counter())
    parts = dict(zip(SETUP, np.diff(moments).tolist(), strict=True))
    info = replace(info, earlier=begin.earlier, setup_seconds=moments[-1] - moments[0], setup_parts=parts)
    loop = Loop(built, site, saved, observers, begin.state, begin.next_round)
    with loop.ending():
        loop.start(info)
        del begin, info  # frees all rows of a resumed run
        hosts = [host.decode() for host in topology["host"].tolist()]
        with Watchdog(site.comm, hosts, config.comm.timeout_seconds, site.counters.store(), options.abort_job, stop.received):
            loop.play()
        together(comm, options.check_ownership)
        if comm.rank == 0:
            save_adapter(options.out, built, loop.state)
    if comm.rank == 0:
        saved.finish(config.checkpoint.keeps_last)


@dataclass
class Loop:
    """The rounds of a run, from the next one to the last."""

    built: Experiment
    site: Site
    saved: Saved
    observers: Background
    state: State
    next_round: int

    def __post_init__(self) -> None:
        self.last_saved = self.next_round - 1
        self.config, self.setup = self.built.config, self.built.setup

    def start(self, info: RunInfo) -> None:
        """Notify observers of the run's start. Raises AgreedError, on every rank, when an observer cannot begin."""
        together(self.site.comm, lambda: self.observers.started(info))
        self.site.comm.lap()

    def play(self) -> None:
        """Play all rounds, notify observers, and save checkpoints as `checkpoint.every` says.

        Raises StoppedError, on every rank, when a signal stops the run, as soon as the state is saved.
        """
        for number in range(self.next_round, self.config.rounds + 1):
            if self.site.stop.agreed(self.site.comm):
                self.stop_after(number - 1)
            try:
                records = play(self.setup, self.site, self.state, number)
            except AbandonedError:
                self.stop_after(number - 1)
            self.refuse_empty(number, records)
            write = self.save(number) if self.is_saved(number) else lambda: None
            with self.site.comm.phase("log"):
                self.observers.rounds(records, write)
        self.observers.flush()

    def is_saved(self, number: int) -> bool:
        """Whether the state after round `number` is saved, so that a run can be resumed from it."""
        checkpoint = self.config.checkpoint
        if number == self.config.rounds:
            return checkpoint.keeps_last
        return bool(checkpoint.every) and number % checkpoint.every == 0

    def save(self, number: int) -> Callable[[], None]:
        """Save this rank's part of the state after round `number`. Returns what saves the rest, called once the round is logged."""
        self.last_saved = number
        return self.saved.write(self.site, self.state, number)

    def stop_after(self, number: int) -> None:
        """Save the state after round `number` if it is not saved yet, and raise StoppedError on every rank."""
        if number > self.last_saved:
            self.observers.rounds([], self.save(number))
        together(self.site.comm, self.observers.flush)  # the launcher may kill all ranks when one rank leaves early
        where = f"after round {self.last_saved} of {self.config.rounds}" if self.last_saved >= 0 else "before round 0"
        how = f"the same command with --resume --out {shlex.quote(str(self.saved.folder.parent))} goes on from there"
        raise StoppedError(f"a signal stopped the run {where}; {how}", self.last_saved - self.next_round + 1)

    def refuse_empty(self, number: int, records: list[RoundRecord]) -> None:
        """Raise AgreedError, on every rank, when clients have trained and every update was rejected; the round is logged first."""
        if number == 0 or self.state.accepted_weight:
            return
        together(self.site.comm, partial(self.observers.rounds, records))
        lr = self.setup.client.lr
        cure = f"lower client.lr ({lr:g}), or look for NaN and infinity in the model's weights and in the data"
        raise AgreedError(
            f"round {number}: every client's update was rejected, since each one was not finite or far too large; {cure}"
        )

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Notify observers of the status with which the run ended, whatever happens inside."""
        status = "failed"
        try:
            yield
            status = "finished"
        except StoppedError:
            status = "stopped"
            raise
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            untested = self.state.tests.untested
            if untested is not None and status != "stopped":
                with suppress(Exception):  # the first error is reported, not later ones
                    self.observers.round(untested)
            self.observers.ended(status)


def shared_counters(config: Config, site: Site) -> counters.Counters:
    """Connect all ranks to shared counters, for idle ranks; their store also carries the heartbeats that show a hanging rank.

    Raises UserError, on every rank, when the run needs the counters and cannot connect. Other runs stop trying after a few seconds,
    and continue without counters.
    """
    if config.cohort.assignment == "dynamic" or config.evaluate.overlap:
        return counters.share(site.comm, config.comm.timeout_seconds)
    try:
        return counters.share(site.comm, config.comm.timeout_seconds, OPTIONAL_STORE_SECONDS)
    except AgreedError:
        return counters.Counters()


def run_info(built: Experiment, site: Site, topology: Rows) -> RunInfo:
    """The description of the whole run for observers."""
    config, setup, features = built.config, built.setup, built.features
    first_step = firststep.describe(setup.method, setup.by_jacobian, setup.federation.num_private > 0)
    return RunInfo(
        seed=config.seed,
        config=config.to_yaml(),
        versions=versions(),
        launcher=site.launch.launcher,
        backend=site.comm.name,
        world_size=site.comm.size,
        dataset=built.dataset.name,
        features=features.place,
        features_made_by=json.dumps({name: text for name, text in features.facts.items() if name != "damaged"}),
        num_features_computed=features.num_computed,
        num_damaged=len(features.damaged),
        left_out=built.dataset.left_out,
        identity=built.identity.all,
        plugins={title(part): part.source for part in configfile.own_parts(config) if part.is_file},
        topology=topology,
        num_rounds=config.rounds,
        num_clients=setup.holdings.num_clients,
        rows_per_round=rows_per_round(config, setup.num_participants),
        num_params=setup.method.num_trained,
        algorithm=setup.federation.name,
        num_private_params=setup.federation.num_private,
        payload_bytes=setup.federation.payload_bytes,
        how=f"{setup.method.how}; first step: {first_step}",
        group_size=setup.grouping.most,
        num_groups=sum(map(len, groups_of_ranks(setup, site.comm.size, 1))),
        split=experiment.split(built) if site.comm.rank == 0 else None,
        setup_seconds=0.0,
    )


def rows_per_round(config: Config, num_participants: int) -> int:
    """Rows of /clients that a round adds."""
    most = config.records.most_clients
    return num_participants if most is None else min(most, num_participants)


def place_rows(places: list[devices.RankPlace]) -> Rows:
    """The rows of /topology."""
    return np.array([(p.rank, p.host, p.local_rank, p.device, p.num_threads) for p in places], TOPOLOGY)


def save_adapter(out: Path, built: Experiment, state: State) -> None:
    """Write the adapter, whole or not at all; replace an adapter, or part of one, of a run that was killed here.

    Raises UserError when the adapter cannot be written.
    """
    method, clip = built.setup.method, built.clip
    tensors, classes = method.unpack(state.adapter.cpu()), built.dataset.wordings if method.per_class else ()
    part = out / "adapter.part"
    for folder in (part, out / "adapter"):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        adapters.save(part, clip.model, tensors, method.alpha, clip.name, built.config.method.name, classes, state.merged)
        part.rename(out / "adapter")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(
            f"{out / 'adapter'}: cannot be written ({reason(error)}); make room or make it writable, and go on with --resume"
        ) from None
