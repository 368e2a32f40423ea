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
    """What a run on some ranks left."""

    start_up_seconds: float  # from starting the launcher to round 0
    rounds: Rows  # those that count
    facts: dict[str, Any]
    places: Rows  # of /topology


@dataclass(frozen=True)
class Ranks:
    """What came out for a number of ranks."""

    num_ranks: int
    client_updates_per_second: float
    efficiency: float  # of that, per rank, over the throughput of one rank
    speedup: float  # over one rank
    independent_speedup: float | None  # of as many runs at once that know nothing of each other: what the cores allow
    start_up_seconds: float  # median of the repeats
    round_seconds: float
    shares: dict[str, float]  # of a round's phases
    repeat_updates_per_second: list[float]


def cores() -> list[int]:
    """A processor of each core that this process may use: two threads of a core share what they compute with."""
    found: dict[str, int] = {}
    for number in sorted(os.sched_getaffinity(0)):
        siblings = CPUS / f"cpu{number}" / "topology" / "thread_siblings_list"
        found.setdefault(siblings.read_text() if siblings.exists() else str(number), number)
    return list(found.values())


def default_ranks(num_cores: int) -> list[int]:
    """1, 2, 4, ... and all cores."""
    powers = [2**i for i in range(num_cores.bit_length()) if 2**i < num_cores]
    return [*powers, num_cores]


def check(config: Config, ranks: Sequence[int]) -> None:
    """Raise UserError for what cannot be measured here."""
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
    """The command before `-m module` that starts a number of ranks; where no launcher is named, with mpiexec if that is here.

    Raises UserError when the launcher that is named is not.
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
    """Play runs at once, each started by its command, on as many of the cores `on`. Raises UserError when one fails."""
    share, started, runs = len(on) // len(commands), time.time(), []
    for number, command in enumerate(commands):
        out, mine = folder / str(number), ",".join(map(str, on[number * share : (number + 1) * share]))
        whole = [*command, "-m", "flora_hpc.bench.pin", mine, "run", str(config), "--view", "plain", "--out", str(out)]
        runs.append((out, subprocess.Popen(whole, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})))
    if failed := [code for code in [run.wait() for _, run in runs] if code != 0]:
        raise UserError(f"the run on {share} ranks failed with exit code {failed[0]}; what it said stands above")
    return [_played(out, started) for out, _ in runs]


def _played(out: Path, started: float) -> Played:
    facts, tables = hdf5file.read(out)
    begun = (out / "config.yaml").stat().st_mtime  # written right before round 0
    return Played(begun - started, tables["rounds"][tables["rounds"]["round"] >= WARM], facts, tables["topology"])


def measure(
    config: Config,
    ranks: Sequence[int],
    launcher: str | None,
    repeats: int,
    independent: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Play the run on each number of ranks, `repeats` times in turn, to and fro; `independent` runs, too, as many at once."""
    start, on = starter(launcher), cores()
    played: dict[int, list[Played]] = {number: [] for number in ranks}
    at_once: dict[int, list[Played]] = {number: [] for number in ranks if independent and number > 1}
    with tempfile.TemporaryDirectory(prefix="flora-hpc-bench-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(config.to_yaml(), encoding="utf-8")
        for repeat in range(repeats):
            turns = list(played.items())
            for number, runs in turns if repeat % 2 == 0 else reversed(turns):
                tell(f"run of {config.rounds} rounds on {number} rank{'s' * (number > 1)} ({repeat + 1} of {repeats})")
                runs += play([start(number)], path, Path(folder) / f"{number}-{repeat}", on[:number])
                if number in at_once:
                    tell(f"as many independent runs at once ({repeat + 1} of {repeats})")
                    at_once[number] += play([start(1)] * number, path, Path(folder) / f"apart-{number}-{repeat}", on[:number])
    rounds, facts, places = played[1][0].rounds, played[1][0].facts, played[max(ranks)][0].places
    return {
        "model": config.model.name,
        "method": config.method.name,
        "dataset": facts["dataset"],
        "num_clients": int(rounds["num_clients"][0]),
        "group_size": facts["group_size"],
        "rounds": sum(len(run.rounds) for run in played[1]),
        "repeats": repeats,
        "launcher": facts["launcher"],
        "backend": facts["backend"],
        "cores": on[: max(ranks)],
        "num_threads": int(places["num_threads"].max()),  # of a rank
        "device": places["device"][0].decode(),
        "processor": processor(),
        "versions": versions(),
        "ranks": [asdict(one) for one in compare(played, at_once)],
    }


def compare(played: dict[int, list[Played]], at_once: dict[int, list[Played]]) -> list[Ranks]:
    """Throughput and efficiency of each number of ranks, of which 1 is one."""
    splits: dict[int, Shares] = {n: shares_of(np.concatenate([run.rounds for run in runs])) for n, runs in played.items()}
    alone = splits[1].client_updates_per_second
    apart = {n: shares_of(np.concatenate([run.rounds for run in runs])).client_updates_per_second for n, runs in at_once.items()}
    return [
        Ranks(
            num_ranks=number,
            client_updates_per_second=splits[number].client_updates_per_second,
            efficiency=splits[number].client_updates_per_second / (number * alone),
            speedup=splits[number].client_updates_per_second / alone,
            independent_speedup=number * apart[number] / alone if number in apart else None,
            start_up_seconds=statistics.median(run.start_up_seconds for run in runs),
            round_seconds=splits[number].round_seconds,
            shares=splits[number].shares,
            repeat_updates_per_second=[shares_of(run.rounds).client_updates_per_second for run in runs],
        )
        for number, runs in played.items()
    ]
