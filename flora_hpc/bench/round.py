"""Where a round's time goes: plays whole runs with their logs, under any launcher, and reads the logs."""

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
NOT_FRAMEWORK = ("train", "wait", "comm", "eval")  # training, collectives and evaluation: a bare loop on ranks has them too


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
    """The shares of the phases in rows of /rounds."""
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
        raise UserError(f"--bare: is a loop in one process, but {me.launcher} started {me.size}; start one, or leave --bare out")
    if config.rounds < WARM:
        raise UserError(f"rounds: {config.rounds} leaves nothing to measure, since the first one warms up; give at least {WARM}")


def play(config: Config, comm: Communicator, me: Launch) -> tuple[dict[str, Any], Rows, Rows]:
    """Play a run with its log in a temporary folder. Rank 0 gets its attributes, its rounds after the warm-up and its topology."""
    with tempfile.TemporaryDirectory(prefix="flora-hpc-bench-") as folder:
        out = Path(folder) / "run"
        loop.run(config, comm, me, loop.RunOptions(out, lambda: [hdf5.build(out)]))
        if comm.rank != 0:
            return {}, np.zeros(0, ROUNDS), np.zeros(0, TOPOLOGY)
        attributes, tables = hdf5file.read(out)
    return attributes, tables["rounds"][tables["rounds"]["round"] >= WARM], tables["topology"]


def measure(
    configs: Sequence[Config],
    comm: Communicator,
    me: Launch,
    repeats: int,
    with_bare: bool,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any] | None:
    """Play each configuration `repeats` times, all of them in turn: the result on rank 0, None elsewhere.

    Configurations differ only in the number of registered clients. `with_bare` also plays the first one as a bare loop, in turn
    with the runs. All ranks of `comm` call this.
    """
    bare_round = bare.loop(configs[0], me) if with_bare else None
    tables_of: list[list[Rows]] = [[] for _ in configs]
    bare_seconds: list[float] = []
    attributes: dict[str, Any] = {}
    topology = np.zeros(0, TOPOLOGY)
    for repeat in range(repeats):
        turns = list(zip(configs, tables_of, strict=True))
        for config, tables in turns if repeat % 2 == 0 else reversed(turns):  # to and fro: the order favours none
            num_registered = getattr(config.partition, "num_clients", None)  # a file may define the clients
            who = "the file's" if num_registered is None else f"{num_registered:,}"
            progress(f"run of {config.rounds} rounds, {who} clients registered ({repeat + 1} of {repeats})")
            attributes, rounds, topology = play(config, comm, me)
            tables.append(rounds)
        if bare_round is not None:
            progress(f"bare loop ({repeat + 1} of {repeats})")
            bare_seconds += [bare_round() for _ in range(configs[0].rounds)][WARM - 1 :]
    if comm.rank != 0:
        return None
    shares_of_configs = [shares_of(np.concatenate(tables)) for tables in tables_of]
    first = shares_of_configs[0]
    return {
        **setting(configs[0], attributes, topology, repeats),
        **asdict(first),
        "populations": [
            {
                "registered": getattr(config.partition, "num_clients", None) or int(attributes["num_clients"]),
                "round_seconds": shares.round_seconds,
                "repeat_round_seconds": [shares_of(rounds).round_seconds for rounds in tables],
                "ratio": shares.round_seconds / first.round_seconds,
            }
            for config, shares, tables in zip(configs, shares_of_configs, tables_of, strict=True)
        ],
        "bare": against_bare(first, bare_seconds) if bare_seconds else None,
    }


def setting(config: Config, attributes: Mapping[str, Any], topology: Rows, repeats: int) -> dict[str, Any]:
    """The settings and the machine, from the attributes of a run and its rows of /topology."""
    return {
        "model": config.model.name,
        "method": config.method.name,
        "dataset": attributes["dataset"],
        "repeats": repeats,
        "world_size": attributes["world_size"],
        "launcher": attributes["launcher"],
        "backend": attributes["backend"],
        "group_size": attributes["group_size"],
        "num_params": attributes["num_params"],
        "device": topology["device"][0].decode(),
        "num_threads": int(topology["num_threads"][0]),
        "processor": processor(),
        "versions": versions(),
    }


def against_bare(shares: Shares, seconds: Sequence[float]) -> dict[str, float]:
    """The seconds and the throughput of bare rounds, and the share of it that whole rounds reach."""
    median = statistics.median(seconds)
    throughput = shares.num_clients / median
    return {
        "round_seconds": median,
        "client_updates_per_second": throughput,
        "ratio": shares.client_updates_per_second / throughput,
    }
