"""The library: run experiments from a script, a notebook, a test, or under any launcher."""

import atexit
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from flora_hpc import configfile, forecast, loop, plugins, rundir
from flora_hpc.comm import launch
from flora_hpc.comm.communicator import Communicator, choose, connect, send_to_all, together
from flora_hpc.comm.launch import Launch
from flora_hpc.comm.stop import Stop
from flora_hpc.config import CommConfig, Config
from flora_hpc.errors import StoppedError, UserError, at_home
from flora_hpc.job import aborter, guarded
from flora_hpc.observers import _tracker, _trackerthread, hdf5
from flora_hpc.observers._observer import Observer
from flora_hpc.owner.claim import Claim
from flora_hpc.records.known import RoundRecord, RunInfo
from flora_hpc.records.opened import Run, open_run
from flora_hpc.shared import Shared

Source = Config | Mapping[str, Any] | str | Path
Files = str | Path | Sequence[str | Path]
OnRound = Callable[[dict[str, Any]], None]


def load_config(config: Source, /, *, plugin_files: Files = (), **overrides: Any) -> Config:
    """Load the whole configuration, checked, with every default filled in. `run` explains the arguments.

    Values that an override replaces or drops are named in warnings. Raises UserError with one line per mistake.
    """
    with plugins.scope():
        _use(plugin_files)
        return _load(config, overrides)


def _load(config: Source, overrides: Mapping[str, Any]) -> Config:
    resolved, sentences = configfile.load_values(_source(config), _dotted(overrides))
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=4)
    return resolved


def _source(config: Source) -> Path | Mapping[str, Any]:
    """The file or the mapping of a configuration. Raises UserError for anything else."""
    source = config.model_dump(mode="json") if isinstance(config, Config) else config
    source = Path(source) if isinstance(source, str) else source
    if not isinstance(source, Path | Mapping):
        raise UserError(f"config: must be a path, a mapping or a Config, not {type(source).__name__}")
    return source


def _dotted(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in overrides.items()}


def _use(plugin_files: Files) -> None:
    """Add the parts in the user's files to their families."""
    for file in [plugin_files] if isinstance(plugin_files, str | Path) else plugin_files:
        plugins.use(file)


def plan(
    config: Source,
    /,
    *,
    ranks: int = 1,
    gpus_per_node: int = 0,
    plugin_files: Files = (),
    **overrides: Any,
) -> forecast.Plan:
    """Plan a run on `ranks` ranks from shapes alone: clients of each rank, bytes of a round, memory of a rank.

    `run` explains the arguments. Raises UserError for mistakes that a run would refuse, as far as shapes show them.
    """
    if ranks < 1 or gpus_per_node < 0:
        raise UserError(f"plan: ranks={ranks}, gpus_per_node={gpus_per_node}: give at least 1 rank, and 0 GPUs or more")
    with plugins.scope():
        _use(plugin_files)
        return forecast.plan(_load(config, overrides), ranks, gpus_per_node)


def run(
    config: Source,
    /,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    on_round: OnRound | None = None,
    track: str | Sequence[str] = (),
    plugin_files: Files = (),
    signals: bool = True,
    shared: Shared | None = None,
    **overrides: Any,
) -> Run:
    """Run an experiment and return its records, on every rank. Under mpiexec, srun or torchrun all ranks make the same call.

    `config` is the path of a YAML file, a nested mapping, or a Config. `overrides` replace its values, by dotted key: `rounds=3`,
    `client__lr=1e-4` (two underscores for a dot), or `**{"client.lr": 1e-4}`.

    `out` is the run directory, by default runs/<name>-<time>; `resume` resumes the unfinished run in it.
    `on_round` is called on rank 0 with the columns of each round's row of /rounds, in a background thread while the next round is
    played; an exception in it ends the run. `track` names trackers such as "csv". `plugin_files` contain your own parts.
    Unless `signals` is False, SIGUSR1 and SIGTERM save the run and raise StoppedError; Python allows that only in the main thread.
    Runs with the same `shared` object share model, data and features.

    The adapter has the same bits as from `flora-hpc run` with the same configuration. Raises UserError for mistakes that the user
    must correct. When one rank fails, all ranks are ended.
    """
    started = time.perf_counter()
    me = launch.detect()
    name = Path(config).stem if isinstance(config, str | Path) else "run"
    if resume and out is None:
        raise UserError("resume=True: which run? name its directory with out")
    folder = at_home(out, key="out") if out is not None else rundir.new(name)
    trackers = (track,) if isinstance(track, str) else tuple(track)

    def load() -> Config:
        _use(plugin_files)
        if resume and me.rank == 0:
            rundir.check_plugins(folder)
        return _load(config, overrides)

    def load_comm() -> CommConfig:
        return configfile.load_comm_values(_source(config), _dotted(overrides))

    with plugins.scope(), Claim(folder, _warn) as claim, _ranks(me, load, load_comm) as (comm, resolved), _threads_restored():
        together(comm, lambda: _tracker.check(list(trackers)) if comm.rank == 0 else None)
        contents, folder = rundir.enter(comm, folder, resolved, claim, resume)
        stop = Stop(ends_process=False)
        options = loop.RunOptions(
            folder,
            partial(_observers, claim, on_round, trackers),
            started=started,
            resume=contents.unfinished,
            abort_job=aborter(comm),
            check_ownership=claim.check,
            stop=stop,
            shared=shared,
        )
        if not contents.finished:
            with stop.listening() if signals else nullcontext():
                loop.run(resolved, comm, me, options)
        return _opened(comm, folder)


def _observers(claim: Claim, on_round: OnRound | None, track: Sequence[str]) -> list[Observer]:
    """The observers of a run on rank 0."""
    callbacks = [_Callback(on_round)] if on_round else []
    return [claim, hdf5.build(claim.folder), *callbacks, _trackerthread.build(track, claim.folder)]


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=3)


@contextmanager
def _threads_restored() -> Iterator[None]:
    """At the end, PyTorch has as many threads as before."""
    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


class _Callback:
    """The observer that calls `on_round`."""

    def __init__(self, on_round: OnRound) -> None:
        self._on_round = on_round

    def started(self, info: RunInfo) -> None:
        """There is no round yet."""

    def round(self, record: RoundRecord) -> None:
        self._on_round({name: record.row[name][0].item() for name in record.row.dtype.names or ()})

    def ended(self, status: str) -> None:
        """Nothing to do: `run` returns or raises."""


def _opened(comm: Communicator, folder: Path) -> Run:
    """Open the run on rank 0, and send its attributes, /rounds and /topology to the other ranks: they may not see its folder."""
    opened = together(comm, lambda: open_run(folder) if comm.rank == 0 else None)
    if comm.size == 1 and opened is not None:
        return opened
    short = opened and replace(opened, tables={name: opened.tables[name] for name in ("rounds", "topology")})
    data = send_to_all(comm, pickle.dumps(short) if short else b"")
    result: Run = opened or pickle.loads(data)
    return result


_connection = ExitStack()  # closed when the process ends
_world: list[tuple[str, Communicator]] = []
atexit.register(_connection.close)


@contextmanager
def _ranks(me: Launch, load: Callable[[], Config], load_comm: Callable[[], CommConfig]) -> Iterator[tuple[Communicator, Config]]:
    """The communicator that all runs of this process share, and the configuration; all ranks raise for a mistake in it.

    A rank whose configuration has a mistake connects nevertheless, by what `load_comm` can read: the other ranks wait for it.
    """
    config, problem = None, ""
    try:
        config = load()
    except UserError as error:
        if me.size == 1:
            raise
        problem = str(error)
    comm_config = config.comm if config else load_comm()
    comm = _communicator(me, comm_config)

    def checked() -> Config:
        if config is None:
            raise UserError(problem)
        first = _world[0][0]
        if choose(me, comm_config).backend != first:
            raise UserError(f"comm.backend: all runs of a process share one backend, and the first took {first}; set it to that")
        return config

    with guarded(comm):
        yield comm, together(comm, checked)


def _communicator(me: Launch, config: CommConfig) -> Communicator:
    """The communicator of this process, made by its first run. A process that is alone may change its backend."""
    backend = choose(me, config).backend
    if _world and me.size == 1 and _world[0][0] != backend:
        _connection.close()
        _world.clear()
    if not _world:
        _world.append((backend, _connection.enter_context(connect(me, config))))
        if me.size > 1:
            _abort_on_uncaught_errors(_world[0][1])
    return _world[0][1]


def _abort_on_uncaught_errors(comm: Communicator) -> None:
    """Let an error that ends the script on one rank end the job: the other ranks would wait for this rank in the next run."""
    show = sys.excepthook

    def show_and_abort(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        show(kind, error, trace)
        time.sleep(1)  # the abort may overtake the message
        comm.abort(75 if isinstance(error, StoppedError) else 2 if isinstance(error, UserError) else 1)

    sys.excepthook = show_and_abort
