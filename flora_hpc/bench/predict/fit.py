"""Fit the seconds of a phase to its drivers, term by term: coefficients of at least zero, with the least relative errors.

A run gives one row for each of its ranks: the median of its rounds, which one disturbed round does not move. The band comes from a
bootstrap over the rounds of each run, and from how far whole runs lie from the fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import numpy as np

from flora_hpc.bench.predict.drivers import COLUMNS, Floats
from flora_hpc.bench.predict.samples import Sample

DRAWS = 200
SHORTEST = 1e-7  # seconds of a phase; relative errors of shorter ones are noise of the clock
LEAST_SHARE = 0.02  # of the median row: errors of smaller rows count as those of such a one
STEPS = 12  # of a robust fit
LEAST_SPREAD = 0.05  # between runs: another hour or another node differs by as much, which few runs do not show
EXACT = 0.01  # relative error up to which a row is trusted wholly
FEWEST_FREE = 2  # degrees of freedom of the spread, at least
OUTSIDE = 0.05  # share of a point's drivers that runs may leave undetermined
# The run that shows a driver which is zero in all runs, or that tells a driver apart from others
SHOWS = {
    "rows of others": "2 ranks or more",
    "Jacobian": "client.first_step: jacobian",
    "first steps by Jacobian": "client.first_step: jacobian",
    "first steps": "client.first_step: each",
    "later steps of groups": "a smaller client.batch_size",
    "later steps": "a smaller client.batch_size",
    "doublings of nodes": "2 nodes or more",
    "bytes between nodes": "2 nodes or more",
}
TELLS_APART = {
    "Jacobian": "2 ranks or more",
    "rows of others": "2 ranks or more",
    "later steps of groups": "another client.batch_size",
    "later steps": "another client.batch_size",
    "examples": "another partition.examples_per_client",
    "doublings of ranks": "more ranks",
    "doublings of nodes": "more nodes",
    "bytes in a node": "more ranks",
    "bytes between nodes": "more nodes",
}
OTHERWISE = "another cohort.size"


class Problem(NamedTuple):
    """Rows of a least-squares problem."""

    x: Floats  # (n, k) drivers
    y: Floats  # (n,) seconds
    run: Floats  # (n,) the run of each row


@dataclass(frozen=True)
class Term:
    """The fit of a phase. `draws` (num_draws, k) are coefficients of the bootstrap, `errors` (num_draws,) factors of a new run."""

    phase: str
    coefficients: Floats  # (k,) seconds a driver
    draws: Floats
    errors: Floats
    seen: Floats  # (n, k) the drivers of the rows
    sources: tuple[str, ...]  # names of the runs

    def seconds(self, drivers: Floats) -> Floats:
        """Seconds of rows of drivers (..., k)."""
        seconds: Floats = drivers @ self.coefficients
        return seconds

    def sampled(self, drivers: Floats) -> Floats:
        """Seconds of rows of drivers (n, k) by each draw: (num_draws, n)."""
        seconds: Floats = (self.draws @ drivers.T) * self.errors[:, None]
        return seconds

    def unvaried(self, drivers: Floats) -> str:
        """The cure where the runs do not determine the seconds of `drivers` (k,); empty where they do."""
        scale = np.maximum(np.abs(self.seen).max(0), 1e-12)
        point = np.where(np.abs(self.seen).max(0) > 0, drivers / scale, np.where(drivers > 0, np.inf, 0.0))
        columns = COLUMNS[self.phase]
        if np.isinf(point).any():
            return SHOWS.get(columns[int(np.isinf(point).argmax())], OTHERWISE)
        base = self.seen / scale
        rest = point - np.linalg.lstsq(base.T, point, rcond=1e-6)[0] @ base
        if np.abs(rest).sum() <= OUTSIDE * np.abs(point).sum():
            return ""
        largest = {name for name, part in zip(columns, np.abs(rest), strict=True) if part > np.abs(rest).max() / 2}
        if largest & {"round", "groups", "clients"}:
            return OTHERWISE
        return next((cure for name, cure in TELLS_APART.items() if name in largest), OTHERWISE)

    def missing(self, drivers: Floats) -> bool:
        """Whether a driver of `drivers` (k,) is zero in all runs, but for the copies of other ranks' rows, which take little."""
        unseen = (drivers > 0) & (np.abs(self.seen).max(0, initial=0) == 0)
        return any(is_unseen for name, is_unseen in zip(COLUMNS[self.phase], unseen, strict=True) if name != "rows of others")


def fit(phase: str, samples: Sequence[Sample], rng: np.random.Generator) -> Term | None:
    """Fit a phase to the runs that serve for it; None without such a run."""
    serving = [each for each in samples if each.serves(phase)]
    extra = [pair for each in samples for pair in each.collectives] if phase == "comm" else []
    if not serving and not extra:
        return None
    problem = rows(phase, serving, extra)
    coefficients, trust = solve_robustly(problem)
    draws = np.array([solve(rows(phase, serving, extra, rng), trust) for _ in range(DRAWS)])
    sources = tuple(each.name for each in serving)
    return Term(phase, coefficients, draws, errors(problem, coefficients, rng), problem.x, sources)


def rows(
    phase: str, samples: Sequence[Sample], extra: Sequence[tuple[list[float], float]], rng: np.random.Generator | None = None
) -> Problem:
    """A row for each rank of each run: its drivers, and the median of its rounds, which `rng` draws with replacement."""
    x, y, run = [], [], []
    for number, each in enumerate(samples):
        seconds = each.seconds[phase]
        chosen = seconds if rng is None else seconds[rng.integers(0, len(seconds), len(seconds))]
        x.append(each.drivers.of[phase])
        y.append(np.maximum(median(chosen) - (each.drivers.deal_seconds if phase == "batch" else 0.0), SHORTEST))
        run.append(np.full(chosen.shape[1], number))
    for number, (values, duration) in enumerate(extra):
        x.append(np.array([values]))
        y.append(np.array([max(duration, SHORTEST)]))
        run.append(np.array([len(samples) + number]))
    return Problem(np.concatenate(x), np.concatenate(y), np.concatenate(run))


def median(seconds: Floats) -> Floats:
    """The median of each column; NumPy's own takes ten times as long for few rows."""
    ordered, count = np.sort(seconds, axis=0), len(seconds)
    middle: Floats = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return middle


def solve(problem: Problem, trust: Floats) -> Floats:
    """Coefficients (k,) of at least zero with the least sum of `trust` (n,) times squared relative errors; runs count alike."""
    from scipy.optimize import nnls  # takes half a second

    least = LEAST_SHARE * float(np.median(problem.y))  # a row that the clock shows as almost nothing must not decide all
    weights = np.sqrt(trust / np.bincount(problem.run)[problem.run]) / np.maximum(problem.y, least)
    scale = np.maximum(problem.x.max(0), 1e-12)
    coefficients: Floats = nnls(problem.x * weights[:, None] / scale, problem.y * weights)[0] / scale
    return coefficients


def solve_robustly(problem: Problem) -> tuple[Floats, Floats]:
    """Coefficients (k,) with the least sum of absolute relative errors, and the trust (n,) that gives them.

    A run beside other work of the machine is slow as a whole: squares would follow it. So rows are trusted less the farther they
    lie from the fit, again and again.
    """
    trust = np.ones(len(problem.y))
    for _ in range(STEPS):
        coefficients = solve(problem, trust)
        trust = 1 / np.maximum(np.abs(np.log(problem.y / np.maximum(problem.x @ coefficients, SHORTEST))), EXACT)
    return solve(problem, trust), trust


def errors(problem: Problem, coefficients: Floats, rng: np.random.Generator) -> Floats:
    """Factors (DRAWS,) between a run and the fit: of Student's t, as wide as whole runs lie from the fit."""
    fitted = np.maximum(problem.x @ coefficients, SHORTEST)
    logs = np.array([np.median(np.log(problem.y / fitted)[problem.run == run]) for run in np.unique(problem.run)])
    free = max(FEWEST_FREE, len(logs) - int((coefficients > 0).sum()))
    spread = max(LEAST_SPREAD, sqrt(float((logs**2).sum()) / free))
    factors: Floats = np.exp(np.clip(spread * rng.standard_t(free, DRAWS), -1, 1))
    return factors
