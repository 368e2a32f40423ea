"""Client updates per second on 1, 2, ... ranks, each of them pinned to a core of its own."""

import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flora_hpc.bench.methods import processor
from flora_hpc.bench.round import WARM, Shares, shares_of
from flora_hpc.comm import launch
from flora_hpc.config import Config
from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file
from flora_hpc.records.schema import Rows
from flora_hpc.versions import versions

DEFAULT = Path(__file__).with_name("scale.yaml")
CPUS = Path("/sys/devices/system/cpu")


class Played(NamedTuple):
    """The log of a run on a number of ranks."""

    start_up_seconds: float  # from starting the launcher to round 0
    rounds: Rows  # after the warm-up
    attributes: dict[str, Any]
    topology: Rows


@dataclass(frozen=True)
class Ranks:
    """The result for a number of ranks."""

    num_ranks: int
    client_updates_per_second: float
    efficiency: float  # throughput per rank, over the throughput of one rank
    speedup: float  # over one rank
    independent_speedup: float | None  # of as many independent runs at once: the limit of the cores
    start_up_seconds: float  # median of the repeats
    round_seconds: float
    shares: dict[str, float]  # of a round's phases
    repeat_updates_per_second: list[float]


def cores() -> list[int]:
    """One processor of each core that this process may use: the two threads of a core share its arithmetic units."""
    processors: dict[str, int] = {}
    for number in sorted(os.sched_getaffinity(0)):
        siblings = CPUS / f"cpu{number}" / "topology" / "thread_siblings_list"
        processors.setdefault(siblings.read_text() if siblings.exists() else str(number), number)
    return list(processors.values())


def default_ranks(num_cores: int) -> list[int]:
    """1, 2, 4, ... and all cores."""
    powers = [2**i for i in range(num_cores.bit_length()) if 2**i < num_cores]
    return [*powers, num_cores]


def check(config: Config, ranks: Sequence[int]) -> None:
    """Raise UserError for a measurement that this machine does not allow."""
    if (size := launch.detect().size) > 1:
        raise UserError(f"bench scale starts its ranks itself, but the launcher started {size} of it; start one")
    if 1 not in ranks:
        raise UserError(f"--ranks: give 1 as well, with which others are compared: --ranks 1,{','.join(map(str, ranks))}")
    if max(ranks) > (num := len(cores())):
        raise UserError(f"--ranks: {max(ranks)} ranks need a core each, but this process may use {num}; give at most {num}")
    if config.rounds < WARM:
        raise UserError(f"rounds: {config.rounds} leaves nothing to measure, since the first one warms up; give at least {WARM}")


def find_mpiexec() -> str | None:
    """The wheel's mpiexec, beside Python, or the system's."""
    return shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")


def starter(name: str | None) -> Callable[[int], list[str]]:
    """The command before `-m module` that starts a number of ranks; by default mpiexec, if it is installed.

    Raises UserError when the launcher `name` is not installed.
    """
    mpiexec = find_mpiexec() if importlib.util.find_spec("mpi4py") else None
    if name == "mpiexec" and mpiexec is None:
        raise UserError(
            "--launcher mpiexec: needs mpi4py, and mpiexec beside Python or on PATH; install flora-hpc[mpich], or take "
            "--launcher torchrun"
        )
    if name == "torchrun" or mpiexec is None:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        return lambda num_ranks: [*torchrun, str(num_ranks)]
    return lambda num_ranks: [mpiexec, "-n", str(num_ranks), sys.executable]


def play(commands: Sequence[Sequence[str]], config: Path, folder: Path, on: Sequence[int]) -> list[Played]:
    """Play runs at once, each started by its command, on equal shares of the cores `on`. Raises UserError when one fails."""
    share, start, runs = len(on) // len(commands), time.time(), []
    for number, command in enumerate(commands):
        out, run_cores = folder / str(number), ",".join(map(str, on[number * share : (number + 1) * share]))
        argv = [*command, "-m", "flora_hpc.bench.pin", run_cores, "run", str(config), "--view", "plain", "--out", str(out)]
        runs.append((out, subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})))
    if codes := [code for code in [run.wait() for _, run in runs] if code != 0]:
        raise UserError(f"the run on {share} ranks failed with exit code {codes[0]}; what it said stands above")
    return [_played(out, start) for out, _ in runs]


def _played(out: Path, start: float) -> Played:
    attributes, tables = hdf5file.read(out)
    begin = (out / "config.yaml").stat().st_mtime  # written right before round 0
    return Played(begin - start, tables["rounds"][tables["rounds"]["round"] >= WARM], attributes, tables["topology"])


def measure(
    config: Config,
    ranks: Sequence[int],
    launcher: str | None,
    repeats: int,
    independent: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Play the run on each number of ranks, `repeats` times in turn, to and fro; with `independent`, as many runs at once too."""
    start, on = starter(launcher), cores()
    played: dict[int, list[Played]] = {number: [] for number in ranks}
    at_once: dict[int, list[Played]] = {number: [] for number in ranks if independent and number > 1}
    with tempfile.TemporaryDirectory(prefix="flora-hpc-bench-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(config.to_yaml(), encoding="utf-8")
        for repeat in range(repeats):
            turns = list(played.items())
            for number, runs in turns if repeat % 2 == 0 else reversed(turns):
                progress(f"run of {config.rounds} rounds on {number} rank{'s' * (number > 1)} ({repeat + 1} of {repeats})")
                runs += play([start(number)], path, Path(folder) / f"{number}-{repeat}", on[:number])
                if number in at_once:
                    progress(f"as many independent runs at once ({repeat + 1} of {repeats})")
                    at_once[number] += play([start(1)] * number, path, Path(folder) / f"apart-{number}-{repeat}", on[:number])
    rounds, attributes, topology = played[1][0].rounds, played[1][0].attributes, played[max(ranks)][0].topology
    return {
        "model": config.model.name,
        "method": config.method.name,
        "dataset": attributes["dataset"],
        "num_clients": int(rounds["num_clients"][0]),
        "group_size": attributes["group_size"],
        "rounds": sum(len(run.rounds) for run in played[1]),
        "repeats": repeats,
        "launcher": attributes["launcher"],
        "backend": attributes["backend"],
        "pinned_cores": on[: max(ranks)],
        "num_threads": int(topology["num_threads"].max()),  # of a rank
        "device": topology["device"][0].decode(),
        "processor": processor(),
        "versions": versions(),
        "ranks": [asdict(result) for result in compare(played, at_once)],
    }


def compare(played: dict[int, list[Played]], at_once: dict[int, list[Played]]) -> list[Ranks]:
    """Throughput and efficiency of each number of ranks; 1 must be among them."""
    shares: dict[int, Shares] = {n: shares_of(np.concatenate([run.rounds for run in runs])) for n, runs in played.items()}
    of_one_rank = shares[1].client_updates_per_second
    rates = {n: shares_of(np.concatenate([run.rounds for run in runs])).client_updates_per_second for n, runs in at_once.items()}
    return [
        Ranks(
            num_ranks=number,
            client_updates_per_second=shares[number].client_updates_per_second,
            efficiency=shares[number].client_updates_per_second / (number * of_one_rank),
            speedup=shares[number].client_updates_per_second / of_one_rank,
            independent_speedup=number * rates[number] / of_one_rank if number in rates else None,
            start_up_seconds=statistics.median(run.start_up_seconds for run in runs),
            round_seconds=shares[number].round_seconds,
            shares=shares[number].shares,
            repeat_updates_per_second=[shares_of(run.rounds).client_updates_per_second for run in runs],
        )
        for number, runs in played.items()
    ]
