"""Predictions held out: fit small runs, predict larger and other ones, then measure those as well.

Training runs have at most two ranks and 1,000 clients. What is predicted has more clients, other batches, other numbers of
examples, more ranks than cores, or another model, of which only a few small runs are known.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flora_hpc import configfile
from flora_hpc.bench import quiet
from flora_hpc.bench.methods import processor
from flora_hpc.bench.predict import point, samples
from flora_hpc.bench.predict.point import Target
from flora_hpc.bench.scale import starter
from flora_hpc.comm import launch
from flora_hpc.config import Config
from flora_hpc.errors import UserError
from flora_hpc.records.opened import open_run
from flora_hpc.shared import Shared
from flora_hpc.versions import versions

BASE = Path(__file__).parent.parent / "round.yaml"
TINY: Mapping[str, Any] = {"partition.num_clients": 1_000_000, "evaluate.every": 1, "checkpoint.every": 0}
VIT: Mapping[str, Any] = {**TINY, "model.name": "ViT-B-32", "model.pretrained": "none", "client.first_step": "each"}
ALLOWED, ALLOWED_CROWDED = 0.1, 0.2  # of the measured seconds
Say = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """A run: ranks, clients of a round, examples of a step, and other keys."""

    ranks: int
    clients: int
    batch: int = 32
    rounds: int = 7
    other: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=lambda: TINY)

    @property
    def name(self) -> str:
        """The case in a few words."""
        words = [
            self.model.get("model.name", "flora-tiny"),
            f"{self.ranks} rank{'s' * (self.ranks > 1)}",
            f"{self.clients:,} clients",
        ]
        return ", ".join([*words, f"batch {self.batch}", *(f"{key} {value}" for key, value in self.other.items())])

    def config(self, store: Path) -> Config:
        """Its configuration."""
        own = {"cohort.size": self.clients, "client.batch_size": self.batch, "rounds": self.rounds, "features.store": str(store)}
        return configfile.load_values(BASE, {**self.model, **own, **self.other})[0]


QUANTITY = {"partition.name": "quantity"}
TRAINING = (
    *(Case(1, clients, batch) for clients in (8, 64, 512) for batch in (32, 16)),
    Case(1, 1000),
    *(Case(2, clients) for clients in (64, 512, 1000)),
    Case(2, 512, 16),
    *(Case(1, clients, batch, model=VIT) for clients, batch in ((4, 32), (40, 32), (4, 16), (16, 8))),
    Case(2, 16, model=VIT),
)
HELD_OUT = (
    Case(1, 1000, 8),
    Case(1, 200, 4),
    Case(1, 1000, other={"client.epochs": 2}),
    Case(1, 1000, 16, other=QUANTITY),
    Case(2, 1000, 16, other=QUANTITY),
    Case(2, 2000, 11),
    Case(1, 10_000, rounds=6),
    Case(2, 10_000, rounds=6),
    Case(2, 10_000, 16, rounds=4),
    Case(2, 100_000, rounds=4),
    Case(1, 64, model=VIT, rounds=4),
    Case(2, 64, 8, model=VIT, rounds=4),
    Case(16, 2000),
    Case(16, 10_000, rounds=5),
)


def check() -> None:
    """Raise UserError where a launcher has started this process: the measurement starts its ranks itself."""
    if (size := launch.detect().size) > 1:
        raise UserError(f"bench predict starts its ranks itself, but the launcher started {size} of it; start one")


def measure(training: Sequence[Case], held_out: Sequence[Case], repeats: int, launcher: str | None, say: Say) -> dict[str, Any]:
    """Play all cases, fit those of `training`, and predict those of `held_out`. Raises UserError where a run fails.

    Cases are played `repeats` times, all of them in turn. Of each case the run with the lowest median round counts: other work of
    the machine only ever slows a run.
    """
    load = quiet.load()
    with tempfile.TemporaryDirectory(prefix="flora-hpc-bench-") as name:
        folder = Path(name)
        cases = [*training, *held_out]
        played: list[list[Path]] = [[] for _ in cases]
        for repeat in range(repeats):
            for number, case in enumerate(cases):
                say(f"run {repeat * len(cases) + number + 1} of {repeats * len(cases)}: {case.name}")
                played[number].append(play(case, folder / f"{number}-{repeat}", folder / "store", launcher))
        runs = [min(of_case, key=usual_seconds) for of_case in played]
        shared, small = Shared(), runs[: len(training)]
        pairs = [
            pair(case, small, own, folder / "store", shared) for case, own in zip(held_out, runs[len(training) :], strict=True)
        ]
    return {
        "training": [case.name for case in training],
        "repeats": repeats,
        "pairs": pairs,
        "within": sum(each["within"] for each in pairs),
        "in_band": sum(each["in_band"] for each in pairs),
        "load_before": load,
        "processor": processor(),
        "versions": versions(),
    }


def play(case: Case, out: Path, store: Path, launcher: str | None) -> Path:
    """Play a run, one thread a rank; returns its directory."""
    config = out.with_suffix(".yaml")
    config.write_text(case.config(store).to_yaml(), encoding="utf-8")
    start = starter(launcher)(case.ranks) if case.ranks > 1 else starter("torchrun")(1)[:1]
    command = [*start, "-m", "flora_hpc", "run", str(config), "--view", "plain", "--out", str(out)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise UserError(f"bench predict: the run of {case.name} failed with exit code {done.returncode}; what it said stands above")
    return out


def usual_seconds(run: Path) -> float:
    """The median round of a run, without those that warm up."""
    rounds = open_run(run, ("rounds",)).tables["rounds"]
    return float(np.median(rounds["round_seconds"][rounds["round"] >= samples.WARM]))


def pair(case: Case, training: Sequence[Path], own: Path, store: Path, shared: Shared) -> dict[str, Any]:
    """What is predicted for a case from the runs of `training`, beside what its `own` run measured."""
    config, cores = case.config(store), len(os.sched_getaffinity(0))
    measured = samples.sample(own, config, shared)
    model = point.model(samples.read(training, config, shared, measured.is_gpu))
    target = Target(1, case.ranks, int(measured.is_gpu), cores)
    predicted = point.predict(model, samples.setup_of(config, case.ranks, target.gpus_per_node, case.ranks, shared), target)
    error = predicted.seconds.value / measured.usual_seconds - 1
    allowed = ALLOWED_CROWDED if target.crowding(model.threads) > 1 else ALLOWED
    return {
        "case": case.name,
        "predicted_seconds": predicted.seconds.value,
        "low_seconds": predicted.seconds.low,
        "high_seconds": predicted.seconds.high,
        "measured_seconds": measured.usual_seconds,
        "error": error,
        "allowed": allowed,
        "within": abs(error) <= allowed,
        "in_band": predicted.seconds.low <= measured.usual_seconds <= predicted.seconds.high,
        "terms": {name: interval.value for name, interval in predicted.terms.items()},
        "measured_terms": {phase: float(table.max(1).mean()) for phase, table in measured.seconds.items()},
        "warnings": list(predicted.warnings),
    }
