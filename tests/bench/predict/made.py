"""Samples whose seconds follow known coefficients."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flora_hpc import configfile
from flora_hpc.bench.predict import drivers
from flora_hpc.bench.predict.drivers import COLUMNS, OF_RANK, Floats
from flora_hpc.bench.predict.samples import Sample, setup_of
from flora_hpc.config import Config
from flora_hpc.setup import Setup
from flora_hpc.shared import Shared
from tests.conftest import ROOT

SHARED = Shared()
SECONDS: Mapping[str, Floats] = {  # of each driver, in the order of COLUMNS
    "batch": np.array([1e-3, 1e-3, 1e-5, 0]),
    "jacobian": np.array([0.1, 0.02]),
    "train": np.array([0.01, 1e-3, 1e-4, 5e-3, 2e-3, 0]),
    "sum": np.array([1e-4, 1e-3, 1e-5]),
    "comm": np.array([1e-4, 0, 1e-9, 0]),
    "server": np.array([1e-3]),
    "eval": np.array([4e-3]),
    "log": np.array([5e-4, 1e-7, 0]),
    "rest": np.array([2e-3]),
}


def config(**keys: Any) -> Config:
    """A configuration of `bench round`, of 64 clients unless `keys` (with two underscores for a dot) say otherwise."""
    values = {"partition.num_clients": 2000, "cohort.size": 64} | {key.replace("__", "."): value for key, value in keys.items()}
    return configfile.load_values(ROOT / "flora_hpc" / "bench" / "round.yaml", values)[0]


def setup(num_ranks: int = 1, **keys: Any) -> Setup:
    return setup_of(config(**keys), num_ranks, 0, num_ranks, SHARED)


def sample(num_ranks: int = 1, noise: float = 0.0, seed: int = 0, rounds: int = 8, **keys: Any) -> Sample:
    """A run of these keys whose phases take SECONDS, times factors of a log-normal `noise`."""
    shape = drivers.of_round(setup(num_ranks, **keys), num_ranks)._replace(deal_seconds=0.0)
    rng = np.random.default_rng(seed)
    seconds = {}
    for phase in COLUMNS:
        usual = shape.of[phase] @ SECONDS[phase]
        seconds[phase] = usual * np.exp(noise * rng.normal(size=(rounds, len(usual))))
    total = sum(seconds[phase].max(1) for phase in OF_RANK) + sum(
        took[:, 0] for name, took in seconds.items() if name not in OF_RANK
    )
    return Sample("made", config(**keys), num_ranks, 1, 1, False, shape, seconds, total, 3.0, 6400, 100)


def various(noise: float = 0.0) -> list[Sample]:
    """Runs that vary every driver."""
    keys: list[tuple[int, dict[str, Any]]] = [
        *((1, {"cohort__size": size, "client__batch_size": batch}) for size in (8, 64) for batch in (32, 16)),
        *((1, {"cohort__size": size, "client__batch_size": 32}) for size in (512, 1000)),
        (1, {"cohort__size": 512, "client__batch_size": 16}),
        *((2, {"cohort__size": size, "client__batch_size": 32}) for size in (64, 512)),
    ]
    return [sample(ranks, noise, number, **of_run) for number, (ranks, of_run) in enumerate(keys)]
