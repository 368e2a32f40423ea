"""Noise between ranks: how much longer than usual the slowest of many takes for the same work."""

from collections.abc import Sequence

import numpy as np

from flora_hpc.bench.predict.drivers import OF_RANK, Floats
from flora_hpc.bench.predict.samples import Sample

ALIKE = 0.9  # of the largest work of a rank: ranks with less work than that are not the slowest


def residuals(samples: Sequence[Sample]) -> Floats:
    """Seconds of work of each rank and round over what is usual, (n,), from the larger half of the runs by their seconds.

    Runs of several ranks show how ranks of one round differ, so what slows all ranks at once is no noise between them. Runs of one
    rank only show how rounds differ, and serve where there are no others.
    """
    work = [np.sum([each.seconds[phase] for phase in OF_RANK], axis=0) for each in samples if not each.other]
    alike = [seconds[:, np.median(seconds, axis=0) >= ALIKE * np.median(seconds, axis=0).max()] for seconds in work]
    shared = [seconds for seconds in alike if seconds.shape[1] > 1]
    if shared:
        return np.concatenate([between_ranks(seconds) for seconds in larger(shared)])
    return np.concatenate([(seconds / np.median(seconds, axis=0)).ravel() for seconds in larger(work)])


def larger(work: Sequence[Floats]) -> list[Floats]:
    """The half of the runs with the longest rounds: short rounds vary more."""
    ordered = sorted(work, key=lambda seconds: float(np.median(seconds)))
    return ordered[len(ordered) // 2 :]


def between_ranks(seconds: Floats) -> Floats:
    """How ranks of a round lie around the round's mean, (n,), from (num_rounds, num_ranks).

    What a rank usually takes is divided out first: it may have more clients. The mean of few ranks hides a part of their spread:
    the root of n / (n - 1) undoes that.
    """
    of_rank = seconds / np.median(seconds, axis=0)
    ratios = of_rank / of_rank.mean(1, keepdims=True)
    count = seconds.shape[1]
    centred: Floats = 1 + (ratios.ravel() - 1) * np.sqrt(count / (count - 1))
    return centred


def slowest_of(residuals: Floats, num_ranks: float) -> float:
    """The median of the largest of `num_ranks` draws from the residuals: their quantile 0.5 ** (1 / num_ranks).

    No more than the largest residual that was seen.
    """
    return float(np.quantile(residuals, 0.5 ** (1 / max(1.0, num_ranks))))


def num_alike(work: Floats) -> int:
    """How many ranks have about as much work (num_ranks,) as the one with most."""
    return int((work >= ALIKE * work.max()).sum())
