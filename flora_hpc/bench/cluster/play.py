"""Play the rounds of a class on one part of the world, with the digest of each round."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from flora_hpc import experiment, loop, round
from flora_hpc.bench.cluster.classes import WARM
from flora_hpc.bench.cluster.flip import flipped
from flora_hpc.comm import devices
from flora_hpc.comm.communicator import AgreedError, Communicator, together
from flora_hpc.comm.devices import Neighbours
from flora_hpc.comm.launch import Launch
from flora_hpc.config import Config
from flora_hpc.experiment import Experiment
from flora_hpc.observers import hdf5
from flora_hpc.observers._background import Background
from flora_hpc.records.known import DriftError, RoundRecord
from flora_hpc.records.schema import CLIENTS
from flora_hpc.records.views import PHASES
from flora_hpc.setup import Site, find_site
from flora_hpc.shared import Shared

WORK = ("batch", "train", "sum")  # phases in which a rank works by itself


@dataclass(frozen=True)
class Tools:
    """What the plays of a rank have in common."""

    launch: Launch  # of the whole job
    neighbours: Neighbours
    shared: Shared = field(default_factory=Shared)


@dataclass(frozen=True)
class Played:
    """What a part of the world played. Seconds are those of the rounds that count."""

    ranks: list[int]  # of the world, by rank in the part
    digests: list[str]  # of the adapter after each round, round 0 first
    seconds: list[float]  # of a round
    phases: dict[str, list[float]]  # phase -> seconds of each round, means over ranks
    work_seconds: list[float]  # of each rank, by rank in the part: median of its own work in rounds with clients, 0 without
    num_clients: int  # of a round
    num_rejected: int  # in all rounds
    accuracy: float  # after the first round that counts; NaN when the rounds ended earlier
    peak_memory_bytes: int  # of the largest process
    drift: list[str] = field(default_factory=list)  # digests by rank, when ranks differ
    problem: str = ""  # why the rounds ended early

    def to_bytes(self) -> bytes:
        """As JSON; `from_bytes` decodes it."""
        return json.dumps(self.__dict__).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Played":
        return cls(**json.loads(data))


def set_up(config: Config, comm: Communicator, tools: Tools) -> tuple[Experiment, Site]:
    """Build the experiment and make its features, on all ranks of `comm`. Model, data and features are kept in `tools`."""
    launch = replace(tools.launch, rank=comm.rank, size=comm.size)
    site = find_site(config, comm, launch, neighbours=tools.neighbours)
    built = experiment.build_together(config, site, tools.shared)
    return experiment.with_inputs(built, site, lambda done, total: None, tools.shared), site


def play(config: Config, comm: Communicator, ranks: Sequence[int], tools: Tools, out: Path | None = None) -> Played | None:
    """Play all rounds of `config` on the ranks of `comm`, which are `ranks` of the world. Rank 0 of `comm` gets the result.

    `out` is the directory of the run's log. Ranks that drift apart end the rounds, and so does an error that all ranks know.
    """
    comm = flipped(comm, ranks[comm.rank])
    built, site = set_up(config, comm, tools)
    state = experiment.first_state(built, site)
    observers = Background([hdf5.build(out)] if out is not None and comm.rank == 0 else [])
    topology = loop.place_rows(devices.places(comm, site.launch, site.device, site.num_threads))
    together(comm, lambda: observers.started(loop.run_info(built, site, topology)))
    records: list[RoundRecord] = []
    none = np.zeros(0, CLIENTS)
    drift: list[int] = []
    problem = ""
    site.comm.lap()
    try:
        for number in range(config.rounds + 1):
            try:
                new = round.play(built.setup, site, state, number)
            except DriftError as error:
                new, drift = [], error.digests
            except AgreedError as error:
                problem = str(error)
                break
            if any(site.comm.allgather(b"drift" if drift else b"")):
                break
            with site.comm.phase("log"):
                observers.rounds(new)
            records += [replace(record, clients=none) for record in new]  # a million rows a round are not needed
        together(comm, observers.flush)
    finally:
        observers.ended("failed" if drift or problem else "finished")
    return summed_up(records, ranks, drift, problem) if comm.rank == 0 else None


def summed_up(records: Sequence[RoundRecord], ranks: Sequence[int], drift: Sequence[int], problem: str) -> Played:
    """The result of a part from the records of its rounds."""
    counted = records[1 + WARM :]
    rows = np.concatenate([record.row for record in counted]) if counted else np.zeros(0, records[0].row.dtype) if records else None
    accuracies = [float(record.row["test_accuracy"][0]) for record in counted[:1]]
    return Played(
        ranks=list(ranks),
        digests=[hexadecimal(record.digest) for record in records],
        seconds=column(rows, "round_seconds"),
        phases={phase: column(rows, f"{phase}_seconds") for phase in PHASES},
        work_seconds=own_work(counted),
        num_clients=max((int(record.row["num_clients"][0]) for record in records), default=0),
        num_rejected=sum(int(record.row["num_rejected"][0]) for record in records),
        accuracy=accuracies[0] if accuracies else float("nan"),
        peak_memory_bytes=max((int(record.ranks["peak_memory_bytes"].max()) for record in records), default=0),
        drift=[hexadecimal(digest) for digest in drift],
        problem=problem,
    )


def own_work(records: Sequence[RoundRecord]) -> list[float]:
    """Seconds of each rank's own work, by rank: the median of the rounds in which it had clients; 0 where it never had."""
    if not records:
        return []
    seconds = np.array([np.sum([record.ranks[f"{phase}_seconds"] for phase in WORK], axis=0) for record in records])
    busy = np.array([record.ranks["num_clients"] > 0 for record in records])
    columns = zip(seconds.T, busy.T, strict=True)
    return [float(np.median(values[mask])) if mask.any() else 0.0 for values, mask in columns]


def column(rows: Any, name: str) -> list[float]:
    """A column of rows as numbers; empty without rows."""
    return [] if rows is None else [float(value) for value in rows[name]]


def hexadecimal(digest: int) -> str:
    """A digest of 64 bits, which may be negative, as 16 digits."""
    return f"{digest & 2**64 - 1:016x}"
