"""`flora-hpc slurm --time auto`: the time limit of a job, from what its runs are predicted to take."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

from flora_hpc import extras
from flora_hpc.cli import _jobwork
from flora_hpc.cli._jobchecks import SHORTEST_SECONDS
from flora_hpc.cli._jobscript import Job
from flora_hpc.errors import UserError

AUTO = "auto"
MARGIN = 1.25  # times the upper end of the band


def with_any_time(job: Job) -> Job:
    """The job as it can be checked before its time is predicted."""
    return replace(job, time=limit(0)) if job.time == AUTO else job


def with_time(job: Job, runs: Sequence[Path] | None) -> Job:
    """The job with its time limit. Raises UserError where `--time auto` has no runs, and for runs without `--time auto`."""
    if job.time != AUTO:
        if runs:
            raise UserError(f"--from {runs[0]}: is for --time auto; add that, or leave --from out")
        return job
    if job.is_study:
        raise UserError("--time auto: is for a run or an array of runs; give the time limit of a study as H:MM:SS")
    if not runs:
        raise UserError(
            "--time auto: needs runs on such nodes, since this machine may be slower or faster: give --from RUN, a short run "
            "of this configuration, or give the time limit as H:MM:SS"
        )
    extras.need("--time auto", "scipy")
    return replace(job, time=limit(max(upper_seconds(job, runs))))


def upper_seconds(job: Job, runs: Sequence[Path]) -> list[float]:
    """The upper end of the band of each run of the job, in seconds."""
    from flora_hpc.bench.predict import outcome, point, samples  # torch and open_clip take seconds to import
    from flora_hpc.shared import Shared

    shared, target = Shared(), point.Target(job.nodes, job.ntasks_per_node, job.gpus_on_node)
    upper = []
    for config in _jobwork.of_runs(job).configs:
        model = point.model(samples.read(runs, config, shared, job.gpus_on_node > 0))
        upper.append(outcome.predict(model, config, target, shared)["total_seconds"]["high"])
    return upper


def limit(seconds: float) -> str:
    """A time limit with a margin, in whole minutes: 3000 -> '1:03:00'; at least what a job needs for its warning."""
    minutes = ceil(max(MARGIN * seconds, SHORTEST_SECONDS) / 60)
    return f"{minutes // 60}:{minutes % 60:02}:00"
