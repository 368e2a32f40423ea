"""Where a run begins: at its first state, or where a run that was stopped or killed left off."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flora_hpc import checkpoint, prepare
from flora_hpc.checkpoint import Checkpoint
from flora_hpc.comm.communicator import AgreedError, Communicator, together
from flora_hpc.comm.meter import Meter
from flora_hpc.errors import UserError
from flora_hpc.records import disk, hdf5file
from flora_hpc.records.known import Earlier, RoundRecord
from flora_hpc.round import Federation, State, groups_of, my_groups


@dataclass(frozen=True)
class Begin:
    """The state before a run's next round."""

    state: State
    next_round: int = 0
    earlier: Earlier | None = None  # on rank 0, of a run that goes on


class Saved:
    """The checkpoints of the run in `out`. `essence` is what decides its results: checkpoints of any other are refused."""

    def __init__(self, out: Path, essence: str) -> None:
        self.folder, self._out, self._run = out / "checkpoint", out, hashlib.blake2b(essence.encode(), digest_size=16).hexdigest()

    def write(self, fed: Federation, comm: Meter, state: State, number: int) -> Callable[[], None]:
        """Write this rank's optimizers after round `number`, where they are kept.

        Returns what writes the rest, on rank 0, once the round is in run.h5: a checkpoint that is newer than the log is of no use.
        """
        shards: tuple[str, ...] = ()

        def keep() -> str:
            with comm.phase("log"):
                return checkpoint.write_optimizers(self.folder, number, comm.rank, state.optimizers)

        if fed.client.optimizer_state == "keep":
            name = together(comm, keep)
            shards = tuple(text.decode() for text in comm.allgather(name.encode()))
        if comm.rank != 0:
            return lambda: None
        untested = state.untested
        if untested is not None:
            untested = RoundRecord(untested.row.copy(), untested.ranks, untested.clients)  # the next round notes its accuracy
        point = Checkpoint(number, state.adapter, state.server, untested, shards)

        def save() -> None:
            log = self._out / "run.h5"
            try:
                with suppress(FileNotFoundError):  # who calls `simulation.run` may want no log
                    disk.sync(log)
            except OSError as error:
                raise UserError(f"{log}: does not reach its disk ({error.strerror or error}); go on with --resume") from None
            checkpoint.write(self.folder, point, self._run)

        return save

    def find(self, fed: Federation, comm: Communicator, device: torch.device) -> Begin:
        """Where the unfinished run goes on: after its newest whole checkpoint, or from the start where there is none.

        Rank 0 reads and sends it; optimizers are read by each rank. Raises UserError, on every rank, for what does not fit.
        """
        data, earlier = together(comm, lambda: self._look() if comm.rank == 0 else (b"", None))
        data = share(comm, data)
        if not data:
            return Begin(prepare.first_state(fed, comm, device), 0, earlier)
        point = checkpoint.read(data)
        if len(point.adapter) != fed.method.num_params:
            numbers = f"{len(point.adapter):,} trained numbers, and the method has {fed.method.num_params:,}"
            raise AgreedError(f"{self.folder}: holds {numbers}; go on with the configuration that the run was started with")
        state = State(point.adapter.to(device), to(point.server, device), {}, point.untested if comm.rank == 0 else None)
        following = point.round + 1
        if point.shards:
            mine = my_groups(fed, comm, groups_of(fed, following), following)
            kept = together(comm, lambda: checkpoint.read_optimizers(self.folder, point.shards, mine))
            state.optimizers = {group: to(parts, device) for group, parts in kept.items()}
        return Begin(state, following, earlier)

    def _look(self) -> tuple[bytes, Earlier]:
        """The newest checkpoint that fits the log, empty for none, and the log up to it."""
        _, tables = hdf5file.read(self._out, ())
        data, told = checkpoint.newest(self.folder, self._run, int(tables["rounds"]["round"].max(initial=-1)))
        point = checkpoint.read(data) if data else None
        last = -1 if point is None else point.round
        logged = last - (point is not None and point.untested is not None)
        return data or b"", hdf5file.earlier(self._out, last, logged, told)


def share(comm: Communicator, data: bytes) -> bytes:
    """Rank 0's bytes, on every rank."""
    length = np.array([len(data)], np.int64)
    comm.broadcast(length)
    buffer = np.zeros(int(length[0]), np.uint8)
    if comm.rank == 0:
        buffer[:] = np.frombuffer(data, np.uint8)
    if len(buffer):
        comm.broadcast(buffer)
    return buffer.tobytes()


def to(tree: Any, device: torch.device) -> Any:
    """A tree of tensors on `device`."""
    if isinstance(tree, torch.Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {key: to(value, device) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(to(value, device) for value in tree)
    return tree
