"""Where a run begins: at its first state, or where a run that was stopped or killed left off."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flora_hpc import checkpoint, experiment
from flora_hpc.checkpoint import Checkpoint
from flora_hpc.comm.communicator import AgreedError, send_to_all, together
from flora_hpc.errors import UserError, reason
from flora_hpc.experiment import Experiment
from flora_hpc.identity import Identity
from flora_hpc.optimizers import Kept
from flora_hpc.records import disk, hdf5file
from flora_hpc.records.known import Earlier, RoundRecord
from flora_hpc.records.schema import Rows
from flora_hpc.round import State, my_groups
from flora_hpc.setup import Setup, Site


@dataclass(frozen=True)
class Begin:
    """The state before a run's next round."""

    state: State
    next_round: int = 0
    earlier: Earlier | None = None  # on rank 0, of a run that goes on


class Saved:
    """The checkpoints of the run in `out`. `holds` raises UserError when the run directory belongs to another process now."""

    def __init__(self, out: Path, identity: Identity, holds: Callable[[], None] = lambda: None) -> None:
        self.folder, self._out, self._identity, self.holds = out / "checkpoint", out, identity, holds
        self._run = hashlib.blake2b(identity.essence.to_yaml().encode(), digest_size=16).hexdigest()

    def write(self, setup: Setup, site: Site, state: State, number: int) -> Callable[[], None]:
        """Write this rank's optimizers after round `number`, where they are kept.

        Returns what writes the rest, on rank 0, once the round is in run.h5: a checkpoint that is newer than the log is of no use.
        """
        shards: tuple[str, ...] = ()

        def keep() -> str:
            self.holds()
            with site.comm.phase("log"):
                return checkpoint.write_optimizers(self.folder, number, site.comm.rank, state.optimizers.values())

        if setup.client.optimizer_state == "keep":
            name = together(site.comm, keep)
            shards = tuple(text.decode() for text in site.comm.allgather(name.encode()))
        if site.comm.rank != 0:
            return lambda: None
        untested = state.tests.untested
        if untested is not None:
            untested = RoundRecord(untested.row.copy(), untested.ranks, untested.clients)  # the next round notes its accuracy
        point = Checkpoint(number, state.adapter, state.server, untested, shards, self._identity.all)

        def save() -> None:
            self.holds()
            log = self._out / "run.h5"
            try:
                with suppress(FileNotFoundError):  # who calls `loop.run` may want no log
                    disk.sync(log)
            except OSError as error:
                raise UserError(f"{log}: does not reach its disk ({reason(error)}); go on with --resume") from None
            checkpoint.write(self.folder, point, self._run)

        return save

    def find(self, built: Experiment, site: Site) -> Begin:
        """Where the unfinished run goes on: after its newest whole checkpoint, or from the start where there is none.

        Rank 0 reads and sends it; optimizers are read by each rank. Raises UserError, on every rank, for what does not fit.
        """
        comm, setup = site.comm, built.setup
        data, earlier = together(comm, lambda: self._look(setup) if comm.rank == 0 else (b"", None))
        data = send_to_all(comm, data)
        if not data:
            return Begin(experiment.first_state(built, site), 0, earlier)
        point = checkpoint.read(data)
        if len(point.adapter) != setup.method.num_params:
            numbers = f"{len(point.adapter):,} trained numbers, and the method has {setup.method.num_params:,}"
            raise AgreedError(f"{self.folder}: holds {numbers}; go on with the configuration that the run was started with")
        tests = experiment.tests(built, site)
        tests.untested = point.untested if comm.rank == 0 else None
        state = State(point.adapter.to(site.device), to(point.server, site.device), {}, tests)
        following = point.round + 1
        if point.parts and point.round > 0:  # before round 1 nobody has an optimizer
            mine = list(my_groups(setup, site, following))
            kept = together(comm, lambda: checkpoint.read_optimizers(self.folder, point.parts, mine))
            state.optimizers = {i: Kept(each.clients, to(each.state, site.device)) for i, each in enumerate(kept)}
        return Begin(state, following, earlier)

    def _look(self, setup: Setup) -> tuple[bytes, Earlier]:
        """The newest checkpoint that fits the log, empty for none, and the log up to it."""
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
        earlier = hdf5file.earlier(self._out, last, logged, notes)
        forget_tests(earlier.rounds, setup)
        return data, earlier

    def refuse_others(self) -> None:
        """Raise UserError when the run in `out` began with other data or weights, as far as these are known before features are."""
        attributes, _ = hdf5file.read(self._out, ())
        began_with = json.loads(attributes.get("identity", "{}"))
        if attributes.get("num_damaged"):  # images that cannot be decoded are not left out yet
            began_with = {name: began_with[name] for name in began_with if name not in ("split", "clients")}
        self._compare(began_with)

    def _compare(self, began_with: Mapping[str, str]) -> list[str]:
        """Raise UserError when data or weights are other ones than the run began with. Returns a sentence when nobody can tell."""
        if not began_with:
            return ["an older flora-hpc wrote the run: whether its data and weights are the same could not be compared"]
        chosen = self._identity.chosen
        if other := [f"{key}: {began_with[key]}" for key in chosen if began_with.get(key, chosen[key]) != chosen[key]]:
            raise UserError(
                f"--resume: the run in {self._out} began with {', '.join(other)}, and here it would be "
                f"{', '.join(f'{key}: {chosen[key]}' for key in chosen)}, which decides bits; set it as the run began"
            )
        if changed := self._identity.differences(began_with):
            raise UserError(
                f"--resume: the run in {self._out} began with other data, weights or code: {changed} changed since; "
                "put back what it began with, or start a new run with another --out"
            )
        return []

    def finish(self, keep: bool) -> None:
        """Remove the checkpoints of a run that has finished, all but the last one where that is to be kept."""
        if keep:
            checkpoint.prune(self.folder, sys.maxsize, 1)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


def forget_tests(rows: Rows, setup: Setup) -> None:
    """Clear the accuracy of rounds that a run of `setup.rounds` does not test: a shorter run tested its last round."""
    untested = np.array([not setup.is_tested(number) for number in rows["round"].tolist()], bool)
    for name in rows.dtype.names or ():
        if "accuracy" in name:
            rows[name][untested] = np.nan
    if "worst_client" in (rows.dtype.names or ()):
        rows["worst_client"][untested] = -1


def to(tree: Any, device: torch.device) -> Any:
    """A tree of tensors on `device`."""
    if isinstance(tree, torch.Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {key: to(value, device) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(to(value, device) for value in tree)
    return tree
