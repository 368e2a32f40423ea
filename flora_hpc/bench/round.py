"""Where a round's time goes: whole runs, with their logs, are played under any launcher, and what they recorded is read."""

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flora_hpc import loop
from flora_hpc.bench import bare
from flora_hpc.bench.methods import processor
from flora_hpc.comm.communicator import Communicator
from flora_hpc.comm.launch import Launch
from flora_hpc.config import Config
from flora_hpc.errors import UserError
from flora_hpc.observers import hdf5
from flora_hpc.records import hdf5file
from flora_hpc.records.schema import ROUNDS, TOPOLOGY, Rows
from flora_hpc.records.views import PHASES
from flora_hpc.versions import versions

DEFAULT = Path(__file__).with_name("round.yaml")
WARM = 2  # the first round that counts: 0 only evaluates, 1 warms up
NOT_FRAMEWORK = ("train", "wait", "comm", "eval")  # training, collectives and evaluation: what a bare loop on ranks does as well


@dataclass(frozen=True)
class Shares:
    """Where the time of a round goes. Seconds are medians over rounds, of means over ranks."""

    num_clients: int  # of a round
    num_rounds: int  # measured
    round_seconds: float
    round_seconds_quartiles: tuple[float, float]
    seconds: dict[str, float]  # by phase, and the rest
    shares: dict[str, float]  # of these seconds; they add up to 1
    framework_share: float  # neither training nor collective, waiting nor evaluation
    client_updates_per_second: float  # in whole rounds


def shares_of(rounds: Rows) -> Shares:
    """The split of rows of /rounds."""
    parts = {phase: rounds[f"{phase}_seconds"] for phase in PHASES}
    parts["rest"] = rounds["round_seconds"] - sum(parts.values())
    seconds = {name: float(np.median(part)) for name, part in parts.items()}
    total = sum(seconds.values())
    shares = {name: part / total for name, part in seconds.items()}
    low, middle, high = np.quantile(rounds["round_seconds"], [0.25, 0.5, 0.75]).tolist()
    num_clients = int(np.median(rounds["num_clients"]))
    framework = sum(share for name, share in shares.items() if name not in NOT_FRAMEWORK)
    return Shares(num_clients, len(rounds), middle, (low, high), seconds, shares, framework, num_clients / middle)


def check(config: Config, me: Launch, with_bare: bool) -> None:
    """Raise UserError when no round is left to measure, or when a bare loop would be compared with several ranks."""
    if with_bare and me.size > 1:
        raise UserError(f"--bare: is a loop in one process, but {me.launcher} started {me.size}; start one, or leave --bare away")
    if config.rounds < WARM:
        raise UserError(f"rounds: {config.rounds} leaves nothing to measure, since the first one warms up; give at least {WARM}")


def play(config: Config, comm: Communicator, me: Launch) -> tuple[dict[str, Any], Rows, Rows]:
    """Play a run with its log, in a folder that is gone afterwards: its facts, rounds that count, and places, on rank 0."""
    with tempfile.TemporaryDirectory(prefix="flora-hpc-bench-") as folder:
        out = Path(folder) / "run"
        loop.run(config, comm, me, loop.RunOptions(out, lambda: [hdf5.build(out)]))
        if comm.rank != 0:
            return {}, np.zeros(0, ROUNDS), np.zeros(0, TOPOLOGY)
        facts, tables = hdf5file.read(out)
    return facts, tables["rounds"][tables["rounds"]["round"] >= WARM], tables["topology"]


def measure(
    configs: Sequence[Config],
    comm: Communicator,
    me: Launch,
    repeats: int,
    with_bare: bool,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any] | None:
    """Play each configuration `repeats` times, all of them in turn: the result on rank 0, None elsewhere.

    Configurations differ in the number of registered clients alone. `with_bare`: the first one also as a bare loop, in turn
    with the others. All ranks of `comm` call this.
    """
    bare_round = bare.loop(configs[0], me) if with_bare else None
    played: list[list[Rows]] = [[] for _ in configs]
    bare_seconds: list[float] = []
    facts: dict[str, Any] = {}
    places = np.zeros(0, TOPOLOGY)
    for repeat in range(repeats):
        turns = list(zip(configs, played, strict=True))
        for config, tables in turns if repeat % 2 == 0 else reversed(turns):  # to and fro: who comes first has no advantage
            registered = getattr(config.partition, "num_clients", None)  # a file may have the clients
            who = "the file's" if registered is None else f"{registered:,}"
            tell(f"run of {config.rounds} rounds, {who} clients registered ({repeat + 1} of {repeats})")
            facts, rounds, places = play(config, comm, me)
            tables.append(rounds)
        if bare_round is not None:
            tell(f"bare loop ({repeat + 1} of {repeats})")
            bare_seconds += [bare_round() for _ in range(configs[0].rounds)][WARM - 1 :]
    if comm.rank != 0:
        return None
    splits = [shares_of(np.concatenate(tables)) for tables in played]
    first = splits[0]
    return {
        **setting(configs[0], facts, places, repeats),
        **asdict(first),
        "populations": [
            {
                "registered": getattr(config.partition, "num_clients", None) or int(facts["num_clients"]),
                "round_seconds": one.round_seconds,
                "repeat_round_seconds": [shares_of(rounds).round_seconds for rounds in tables],
                "ratio": one.round_seconds / first.round_seconds,
            }
            for config, one, tables in zip(configs, splits, played, strict=True)
        ],
        "bare": against_bare(first, bare_seconds) if bare_seconds else None,
    }


def setting(config: Config, facts: Mapping[str, Any], places: Rows, repeats: int) -> dict[str, Any]:
    """What was measured and where, from the facts of a run and its rows of /topology."""
    return {
        "model": config.model.name,
        "method": config.method.name,
        "dataset": facts["dataset"],
        "repeats": repeats,
        "world_size": facts["world_size"],
        "launcher": facts["launcher"],
        "backend": facts["backend"],
        "group_size": facts["group_size"],
        "num_params": facts["num_params"],
        "device": places["device"][0].decode(),
        "num_threads": int(places["num_threads"][0]),
        "processor": processor(),
        "versions": versions(),
    }


def against_bare(one: Shares, seconds: Sequence[float]) -> dict[str, float]:
    """The seconds of bare rounds, their throughput, and which share of it whole rounds reach."""
    middle = statistics.median(seconds)
    throughput = one.num_clients / middle
    return {
        "round_seconds": middle,
        "client_updates_per_second": throughput,
        "ratio": one.client_updates_per_second / throughput,
    }
