"""Begin a run: at its first state, or after the newest checkpoint of a run that was stopped or killed."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flora_hpc import checkpoint, experiment, yamltext
from flora_hpc.checkpoint import Checkpoint
from flora_hpc.comm.communicator import AgreedError, send_to_all, together
from flora_hpc.errors import UserError, reason
from flora_hpc.experiment import Experiment
from flora_hpc.identity import Identity
from flora_hpc.memories import Memories
from flora_hpc.records import disk, hdf5file, history
from flora_hpc.records.known import Earlier, RoundRecord, forget_tests
from flora_hpc.records.schema import Rows
from flora_hpc.round import State
from flora_hpc.setup import Setup, Site


@dataclass(frozen=True)
class Begin:
    """The state before a run's next round."""

    state: State
    next_round: int = 0
    earlier: Earlier | None = None  # on rank 0: the log of the resumed run


class Saved:
    """The checkpoints of the run in `out`. `holds` raises UserError when another process now owns the run directory."""

    def __init__(self, out: Path, identity: Identity, holds: Callable[[], None] = lambda: None) -> None:
        self.folder, self._out, self._identity, self.holds = out / "checkpoint", out, identity, holds
        self._run = hashlib.blake2b(identity.essence.to_yaml().encode(), digest_size=16).hexdigest()

    def write(self, site: Site, state: State, number: int) -> Callable[[], None]:
        """Write the memories of the clients at home on this rank after round `number`, where clients remember something.

        Returns a function that writes the checkpoint on rank 0. Call it once the round is in run.h5: a checkpoint that is newer
        than the log cannot be used.
        """
        parts: tuple[str, ...] = ()
        memories = state.memories

        def write_part(memories: Memories) -> str:
            self.holds()
            with site.comm.phase("log"):
                return checkpoint.write_memories(self.folder, number, site.comm.rank, memories)

        if memories is not None:
            name = together(site.comm, partial(write_part, memories))
            parts = tuple(text.decode() for text in site.comm.allgather(name.encode()))
        if site.comm.rank != 0:
            return lambda: None
        untested = state.tests.untested
        if untested is not None:
            # copies, since the next round writes accuracies into these tables
            untested = RoundRecord(untested.row.copy(), untested.ranks, untested.clients.copy())
        # copies, since a server's rule may change its tensors in place while a thread writes them
        point = Checkpoint(
            number, state.adapter.clone(), deepcopy(state.server), untested, parts, self._identity.all, merged=dict(state.merged)
        )

        def save() -> None:
            self.holds()
            log = self._out / "run.h5"
            try:
                with suppress(FileNotFoundError):  # a caller of `loop.run` may write no log
                    disk.sync(log)
            except OSError as error:
                raise UserError(f"{log}: does not reach its disk ({reason(error)}); go on with --resume") from None
            checkpoint.write(self.folder, point, self._run)

        return save

    def find(self, built: Experiment, site: Site) -> Begin:
        """The state after the newest usable checkpoint of the unfinished run; its first state where there is none.

        Rank 0 reads the checkpoint and sends it; each rank reads the memories of the clients at home on it. Raises UserError, on
        every rank, for a checkpoint that does not fit.
        """
        comm, setup = site.comm, built.setup
        data, earlier = together(comm, lambda: self._read_newest(setup) if comm.rank == 0 else (b"", None))
        data = send_to_all(comm, data)
        if not data:
            return Begin(experiment.first_state(built, site), 0, earlier)
        point = checkpoint.read(data)
        if len(point.adapter) != setup.method.num_params:
            numbers = f"{len(point.adapter):,} trained numbers, and the method has {setup.method.num_params:,}"
            raise AgreedError(f"{self.folder}: holds {numbers}; go on with the configuration that the run was started with")
        tests = experiment.tests(built, site)
        tests.untested = point.untested if comm.rank == 0 else None
        keeps_models = setup.federation.keeps_models  # which begin where the run began
        start = experiment.initial_adapter(built, site) if keeps_models else point.adapter
        memories = experiment.memories(built, site, start)
        if memories is not None:
            together(comm, lambda: checkpoint.read_memories(self.folder, point.parts, memories))
        state = State(point.adapter.to(site.device), to(point.server, site.device), tests, memories, point.merged)
        if point.merged:
            assert setup.method.merge is not None
            setup.method.merge(point.merged)
        return Begin(state, point.round + 1, earlier)

    def _read_newest(self, setup: Setup) -> tuple[bytes, Earlier]:
        """The bytes of the newest checkpoint that fits the log, empty for none, and the log up to that round."""
        attributes, tables = hdf5file.read(self._out, ())
        data, point, notes = checkpoint.newest(self.folder, self._run, int(tables["rounds"]["round"].max(initial=-1)))
        if point is None and attributes["status"] == "finished":
            why = "; ".join(notes) or "it kept none (checkpoint.keep: false, checkpoint.every: 0, or an older flora-hpc)"
            raise UserError(
                f"--resume: the finished run in {self._out} has no checkpoint to go on from: {why}; "
                f"for more rounds start a new run with rounds: {setup.rounds} and another --out"
            )
        notes += self._compare((point and point.identity) or json.loads(attributes.get("identity", "{}")))
        last = -1 if point is None else point.round
        logged = last - (point is not None and point.untested is not None)
        earlier, planned = history.earlier(self._out, last, logged, notes), yamltext.parse(attributes["config"])["rounds"]
        rounds = without_other_tests(earlier.rounds, setup, planned)
        clients = (without_other_tests(rows, setup, planned) for rows in earlier.clients)
        return data, replace(earlier, rounds=rounds, clients=clients)

    def refuse_others(self) -> None:
        """Raise UserError when the run in `out` began with other data or weights; before features, only some can be compared."""
        attributes, _ = hdf5file.read(self._out, ())
        first_identity = json.loads(attributes.get("identity", "{}"))
        if attributes.get("num_damaged"):  # undecodable images are dropped only later, with the features
            first_identity = {name: first_identity[name] for name in first_identity if name not in ("split", "clients")}
        self._compare(first_identity)

    def _compare(self, first_identity: Mapping[str, str]) -> list[str]:
        """Raise UserError when data or weights differ from the run's first start. Returns a sentence when no digest is known."""
        if not first_identity:
            return ["an older flora-hpc wrote the run: whether its data and weights are the same could not be compared"]
        chosen = self._identity.chosen
        if different := [f"{key}: {first_identity[key]}" for key in chosen if first_identity.get(key, chosen[key]) != chosen[key]]:
            raise UserError(
                f"--resume: the run in {self._out} began with {', '.join(different)}, and here it would be "
                f"{', '.join(f'{key}: {chosen[key]}' for key in chosen)}, which decides bits; set it as the run began"
            )
        if changed := self._identity.differences(first_identity):
            raise UserError(
                f"--resume: the run in {self._out} began with other data, weights or code: {changed} changed since; "
                "put back what it began with, or start a new run with another --out"
            )
        return []

    def finish(self, keep: bool) -> None:
        """Remove the checkpoints of a finished run. With `keep`, the last checkpoint stays."""
        if keep:
            checkpoint.prune(self.folder, sys.maxsize, 1)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


def without_other_tests(rows: Rows, setup: Setup, planned: int) -> Rows:
    """Clear, in rows of /rounds or /clients, the accuracies that a run of `setup.rounds` does not have, and return the rows.

    A run of `planned` rounds tests its own last round, too. With fine-tuning, the personal accuracies of that round are of
    fine-tuned models, which a longer run does not have.
    """
    numbers, places = np.unique(rows["round"], return_inverse=True)
    forget_tests(rows, np.array([not setup.is_tested(number) for number in numbers.tolist()], bool)[places])
    if setup.evaluate.fine_tune_epochs and planned != setup.rounds:
        forget_tests(rows, rows["round"] == planned, personal_only=True)
    return rows


def to(tree: Any, device: torch.device) -> Any:
    """A tree of tensors on `device`."""
    if isinstance(tree, torch.Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {key: to(value, device) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(to(value, device) for value in tree)
    return tree
