"""Samples: the seconds of every phase of runs, beside the drivers of the same rounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flora_hpc import configfile, experiment, forecast
from flora_hpc.bench.cluster import result as cluster_result
from flora_hpc.bench.predict import drivers
from flora_hpc.bench.predict.differences import difference
from flora_hpc.bench.predict.drivers import OF_RANK, OF_ROUND, Drivers, Floats
from flora_hpc.config import Config
from flora_hpc.data.images import Ints
from flora_hpc.errors import UserError
from flora_hpc.records import clientrows
from flora_hpc.records.opened import Run, open_run
from flora_hpc.records.schema import Rows
from flora_hpc.records.views import PHASES, count
from flora_hpc.setup import Setup
from flora_hpc.shared import Shared

OLDEST = 3  # schema: earlier files have `batch` and `sum` within `train`
WARM = 2  # the first round that counts: round 0 trains nobody, and round 1 pays for first calls
ROUNDS = 5  # of a run whose drivers are computed; the seconds of all rounds count
ON_GPU = "was computed on GPUs; give --gpus-per-node, or runs that were computed on CPUs"
ON_CPU = "was computed on CPUs, and says nothing of GPUs; give runs from such GPUs, or leave --gpus-per-node out"
OF_ANY_MODEL = ("batch", "log", "comm")  # phases that runs of another model or method show as well


@dataclass(frozen=True)
class Sample:
    """One run: `seconds` maps each phase to (num_rounds, num_ranks), or (num_rounds, 1) for the phases of the round."""

    name: str
    config: Config
    num_ranks: int
    num_nodes: int
    threads: int  # of a rank
    is_gpu: bool
    drivers: Drivers  # means over rounds
    seconds: Mapping[str, Floats]
    round_seconds: Floats  # (num_rounds,)
    setup_seconds: float
    file_bytes: int
    num_rows: int  # of /clients, in the whole file
    other: str = ""  # the first key that makes it a run of other work; empty for the same work
    collectives: Sequence[tuple[list[float], float]] = ()  # drivers and seconds of allreduces of a result.json

    @property
    def usual_seconds(self) -> float:
        """The median round."""
        return float(np.median(self.round_seconds))

    def serves(self, phase: str) -> bool:
        """Whether a fit of `phase` may take this run."""
        if phase == "comm":
            return self.num_ranks > 1
        if phase == "eval" and not len(self.seconds[phase]):  # no round was tested
            return False
        return not self.other or phase in OF_ANY_MODEL


def read(sources: Sequence[Path], config: Config, shared: Shared, on_gpu: bool) -> list[Sample]:
    """The samples of runs: run directories, run.h5 files, or results of `bench cluster`. Raises UserError where none fits."""
    samples = [sample(path, config, shared) for path in sources]
    for each in samples:
        if each.is_gpu != on_gpu:
            raise UserError(f"--from {each.name}: {ON_GPU if each.is_gpu else ON_CPU}")
    if all(each.other for each in samples):
        raise UserError(
            f"--from: no run has the same work: {samples[0].name} differs in {samples[0].other}; add a short run of this "
            "configuration with fewer clients, or leave --from out"
        )
    return samples


def sample(path: Path, config: Config, shared: Shared) -> Sample:
    """The sample of one source. Raises UserError for a run that cannot serve."""
    run = open_run(_run_of(path), ("rounds", "ranks", "topology"))
    if int(run.attributes["schema"]) < OLDEST:
        raise UserError(f"{run.path}: has schema {run.attributes['schema']}, without the phases batch and sum; play it again")
    own, _ = configfile.load_values(run.config, {})
    ranks, hosts = run.tables["ranks"], set(run.tables["topology"]["host"].tolist())
    num_ranks = int(run.attributes["world_size"])
    numbers, num_rows = np.unique(ranks["round"][ranks["round"] >= WARM], return_counts=True)
    numbers = numbers[num_rows == num_ranks]  # a run that was resumed on other ranks has the rounds of both
    if not len(numbers):
        raise UserError(f"{run.path}: has no round after round {WARM - 1}, which only warms up; give it rounds: {WARM + 3} or more")
    devices = {(place["host"], place["device"]) for place in run.tables["topology"] if b"cuda" in bytes(place["device"])}
    setup = setup_of(own, num_ranks, len(devices) // len(hosts), -(-num_ranks // len(hosts)), shared)
    grouping = replace(setup.grouping, most=int(run.attributes["group_size"]))  # it may follow from memory that this machine lacks
    setup = replace(setup, grouping=grouping)
    shape = mean([drivers.of_round(setup, num_ranks, len(hosts), int(number)) for number in spread(numbers)])
    seconds = seconds_of(ranks, run.tables["rounds"], numbers, num_ranks)
    seconds["eval"] = seconds["eval"][[setup.is_tested(int(number)) for number in numbers]]
    if setup.by_jacobian:
        seconds = with_jacobian(seconds, run, numbers, shape.deal_seconds)
    if num_ranks > 1 and own.cohort.assignment == "dynamic":  # who trains what is known only for all ranks together
        shape = shape._replace(of={**shape.of} | {phase: shape.of[phase].mean(0, keepdims=True) for phase in OF_RANK})
        seconds = seconds | {phase: seconds[phase].mean(1, keepdims=True) for phase in OF_RANK}
    rounds = run.tables["rounds"]
    return Sample(
        name=str(path),
        config=own,
        num_ranks=num_ranks,
        num_nodes=len(hosts),
        threads=int(run.tables["topology"]["num_threads"].max()),
        is_gpu=bool(devices),
        drivers=shape,
        seconds=seconds,
        round_seconds=rounds["round_seconds"][np.isin(rounds["round"], numbers)],
        setup_seconds=float(run.attributes["setup_seconds"]),
        file_bytes=run.path.stat().st_size,
        num_rows=_num_rows(rounds, own),
        other=difference(own, config),
        collectives=_collectives(path),
    )


def _run_of(path: Path) -> Path:
    """The run of a source: a result of `bench cluster` has its run beside it."""
    if path.suffix != ".json":
        return path
    cluster_result.read(path)
    return path.parent


def _collectives(path: Path) -> list[tuple[list[float], float]]:
    """Drivers and seconds of the allreduces in a result of `bench cluster`; none for a run."""
    if path.suffix != ".json":
        return []
    measured = cluster_result.read(path)
    nodes = int(measured["topology"]["num_nodes"])
    try:
        return [
            (
                drivers.comm(2 * row["bytes"] * (row["ranks"] - 1) / row["ranks"], row["ranks"], _nodes_of(row, nodes)),
                row["median_seconds"],
            )
            for row in measured.get("links", [])
            if row["what"] == "allreduce"
        ]
    except (KeyError, TypeError, ZeroDivisionError):
        raise UserError(f"{path}: its links are damaged; copy it again from where it was measured") from None


def _nodes_of(row: Mapping[str, Any], nodes: int) -> int:
    """Nodes of the ranks of a row of links."""
    return {"all ranks": nodes, "one rank a node": int(row["ranks"])}.get(row["scope"], 1)


def setup_of(config: Config, num_ranks: int, gpus_per_node: int, ranks_per_node: int, shared: Shared) -> Setup:
    """The setup of a run from shapes alone."""
    room = forecast.room_for(gpus_per_node, ranks_per_node)
    return experiment.build(config, torch.device("meta"), room, shared, num_ranks).setup


def seconds_of(ranks: Rows, rounds: Rows, numbers: Ints, num_ranks: int) -> dict[str, Floats]:
    """Seconds of each phase in the rounds `numbers`: (num_rounds, num_ranks), of rank 0 alone for the phases of the round."""
    rows = of_rounds(ranks, numbers, num_ranks)
    seconds = {phase: rows[f"{phase}_seconds"].astype(np.float64) for phase in OF_RANK if phase != "jacobian"}
    seconds["jacobian"] = np.zeros_like(seconds["train"])
    seconds |= {phase: rows[f"{phase}_seconds"][:, :1].astype(np.float64) for phase in OF_ROUND if phase != "rest"}
    covered = np.sum([rows[f"{phase}_seconds"][:, :1] for phase in PHASES], axis=0)
    return seconds | {"rest": np.maximum(0.0, rows["round_seconds"][:, :1] - covered)}


def with_jacobian(seconds: Mapping[str, Floats], run: Run, numbers: Ints, deal_seconds: float) -> dict[str, Floats]:
    """The seconds with those of a Jacobian apart from train: the work of a rank less that of its groups, which /clients has.

    Where /clients has only some clients, their mean counts for all of their rank, or of the round where a rank has none. Finding
    groups takes `deal_seconds`. Raises UserError for a run without such rows.
    """
    rows = clientrows.of_rounds(run.path, int(numbers[0]), int(numbers[-1]), ("round", "rank", "train_seconds"))
    if not len(rows):
        raise UserError(
            f"{run.path}: has no rows of clients, which tell a Jacobian from training; play it with records.clients: all"
        )
    shape = seconds["train"].shape
    place = np.searchsorted(numbers, rows["round"]) * shape[1] + rows["rank"]
    num_rows = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)
    sums = np.bincount(place, rows["train_seconds"], shape[0] * shape[1]).reshape(shape)
    of_round = sums.sum(1, keepdims=True) / np.maximum(num_rows.sum(1, keepdims=True), 1)
    mean_of_client = np.where(num_rows > 0, sums / np.maximum(num_rows, 1), of_round)
    in_groups = mean_of_client * of_rounds(run.tables["ranks"], numbers, shape[1])["num_clients"]
    work = seconds["batch"] - deal_seconds + seconds["train"] + seconds["sum"]
    jacobian = np.clip(work - in_groups, 0.0, seconds["train"])
    return {**seconds, "train": seconds["train"] - jacobian, "jacobian": jacobian}


def of_rounds(ranks: Rows, numbers: Ints, num_ranks: int) -> Rows:
    """The rows of /ranks of the rounds `numbers`, (num_rounds, num_ranks)."""
    rows = ranks[np.isin(ranks["round"], numbers)]
    table: Rows = rows[np.lexsort((rows["rank"], rows["round"]))].reshape(len(numbers), num_ranks)
    return table


def mean(shapes: Sequence[Drivers]) -> Drivers:
    """The mean drivers of several rounds."""
    tables = {phase: np.mean([shape.of[phase] for shape in shapes], axis=0) for phase in shapes[0].of}
    return shapes[0]._replace(of=tables, deal_seconds=min(shape.deal_seconds for shape in shapes))


def spread(numbers: Any) -> Any:
    """At most ROUNDS of `numbers`, evenly spaced."""
    return numbers[np.unique(np.linspace(0, len(numbers) - 1, min(ROUNDS, len(numbers))).astype(int))]


def _num_rows(rounds: Rows, config: Config) -> int:
    """Rows of /clients of the whole run."""
    most = config.records.most_clients
    numbers = rounds["num_clients"] if most is None else np.minimum(most, rounds["num_clients"])
    return int(numbers.sum())


def describe(each: Sample) -> str:
    """A run in a few words."""
    nodes = f" on {count(each.num_nodes, 'node')}" if each.num_nodes > 1 else ""
    clients = count(each.drivers.num_clients, "client")
    by_jacobian = ", Jacobian" if each.drivers.of["jacobian"].any() else ""
    return f"{each.name} ({count(each.num_ranks, 'rank')}{nodes}, {clients}, batch {each.config.client.batch_size}{by_jacobian})"
