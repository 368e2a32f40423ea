"""Short runs of a configuration in a temporary folder: what `predict` measures where no runs are given."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from flora_hpc import api, configfile
from flora_hpc.bench.cluster.surround import age_seconds
from flora_hpc.bench.predict.samples import WARM, Sample, sample, setup_of
from flora_hpc.comm import launch
from flora_hpc.config import Config
from flora_hpc.errors import UserError
from flora_hpc.records.views import count
from flora_hpc.shared import Shared

COHORTS = (8, 64, 512)  # clients of a round
COUNTED = 4  # rounds after the warm-up
LONGEST_SECONDS = 120.0  # of a run; longer ones are left out, but for those of the two smallest cohorts
Say = Callable[[str], None]


class Wanted(NamedTuple):
    """A short run: clients of a round, examples of a step, and how clients make their first step."""

    clients: int
    batch: int
    first_step: str


def measure(config: Config, shared: Shared, on_gpu: bool, say: Say) -> list[Sample]:
    """Play short runs of one rank, and read them. Raises UserError where a launcher started several ranks."""
    if (size := launch.detect().size) > 1:
        raise UserError(f"predict: measures in one process, but the launcher started {size}; start one, or give runs with --from")
    setup = setup_of(config, 1, int(on_gpu), 1, shared)
    first_steps = ["jacobian" if setup.by_jacobian else "each"]
    if config.client.first_step == "auto" and setup.by_jacobian:
        first_steps.append("each")  # tells the Jacobian apart from the rest of a round; smaller cohorts need it
    runs = list(plan(setup.num_participants, min(config.client.batch_size, setup.holdings.largest), first_steps))
    samples: list[Sample] = []
    last: dict[tuple[int, str], tuple[int, float]] = {}  # of the last run of a batch: its clients, seconds
    age = age_seconds()
    with tempfile.TemporaryDirectory(prefix="flora-hpc-predict-") as folder:
        for number, run in enumerate(runs):
            before = last.get(run[1:])
            if before and before[0] > COHORTS[0] and before[1] * run.clients / before[0] > LONGEST_SECONDS:
                say(f"left out, since it would take long: {count(run.clients, 'client')}, batch {run.batch}")
                continue
            say(f"measuring {number + 1} of {len(runs)}: {count(run.clients, 'client')}, batch {run.batch}")
            started = time.perf_counter()
            out = Path(folder) / f"{run.clients} clients, batch {run.batch}, {run.first_step}"
            api.run(with_values(config, run, on_gpu), out=out, shared=shared, signals=False)
            last[run[1:]] = run.clients, time.perf_counter() - started
            samples.append(replace(sample(out, config, shared), name=f"here {len(samples) + 1}"))
    return [replace(samples[0], setup_seconds=samples[0].setup_seconds + age), *samples[1:]]


def plan(participants: int, batch: int, first_steps: list[str]) -> Iterator[Wanted]:
    """The runs: up to three cohorts with the batch and with half of it. Other ways of the first step get two cohorts, one batch."""
    fewest = {max(1, participants // 3)} if participants < COHORTS[1] else set()
    cohorts = sorted({min(size, participants) for size in COHORTS} | fewest)
    for cohort in cohorts:
        for of_step in dict.fromkeys((batch, max(1, batch // 2))):
            yield Wanted(cohort, of_step, first_steps[0])
    for first_step in first_steps[1:]:
        for cohort in cohorts[:2]:
            yield Wanted(cohort, batch, first_step)


def with_values(config: Config, run: Wanted, on_gpu: bool) -> Config:
    """The configuration of a short run."""
    values: dict[str, Any] = {
        "rounds": WARM + COUNTED - 1,
        "cohort.size": run.clients,
        "cohort.fraction": None,
        "client.batch_size": run.batch,
        "comm.backend": "auto",
        "comm.device": "cuda" if on_gpu else "cpu",
    }
    if config.client.first_step == "auto":
        values["client.first_step"] = run.first_step
    resolved, _ = configfile.load_values(config.model_dump(mode="json"), values)
    return resolved
