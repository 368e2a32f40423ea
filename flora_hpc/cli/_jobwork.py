"""What a job plays: one run, an array of runs, or a study. It is checked before it waits in the queue."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flora_hpc import configfile
from flora_hpc.cli import _idle
from flora_hpc.cli._args import whole_numbers
from flora_hpc.cli._jobscript import Array, Job
from flora_hpc.config import Config
from flora_hpc.configtree import split_override
from flora_hpc.errors import UserError
from flora_hpc.records.views import count
from flora_hpc.studies import grid, names, points

CLIENTS = "partition.num_clients"  # the key of an array that names none


@dataclass(frozen=True)
class Runs:
    """The configuration of each run, and notes for the user."""

    configs: Sequence[Config]
    names: Sequence[str]  # of the runs of an array, for sentences; [''] for a run alone
    notes: Sequence[str] = ()

    @property
    def backend(self) -> str:
        """The key comm.backend."""
        return self.configs[0].comm.backend

    def warnings(self, job: Job) -> list[str]:
        """Sentences about ranks without work. Raises UserError for mistakes that a run would refuse."""
        return _idle.warnings(self.configs, self.names, job.num_tasks, job.gpus_on_node, job.ntasks_per_node)


@dataclass(frozen=True)
class StudyWork:
    """A study that has been prepared."""

    num_points: int
    backend: str
    notes: Sequence[str] = ()

    def warnings(self, job: Job) -> list[str]:
        """Sentences about ranks without work."""
        num_parts, most = -(-job.num_tasks // (job.ranks_per_run or 1)), -(-self.num_points // job.shards)
        if num_parts <= most:
            return []
        each = f" in each of {job.shards} shards" if job.shards > 1 else ""
        return [
            f"{num_parts} points can be played at a time, but the study has {most}{each}; "
            "ask for fewer ranks, or raise --ranks-per-run"
        ]


def array(text: str) -> Array:
    """The array of `--array TEXT`: values of a key, or numbers of clients alone. Raises UserError for other texts."""
    if "=" not in text:
        return Array(CLIENTS, tuple(map(str, whole_numbers("--array", text, "10,100,1000 or client.lr=1e-4,1e-3"))))
    try:
        key, values = grid.sweep(text)
    except UserError as error:
        raise UserError(f"--array {error}") from None
    texts = tuple(_text_of(value) for value in values)
    for value in texts:
        if texts.count(value) > 1:
            raise UserError(f"--array: names {key}={value} twice; name it once")
    return Array(key, texts, tuple(names.name_of({key: value}, [key]) for value in values))


def _text_of(value: Any) -> str:
    """A value as `-s key=value` reads it."""
    if isinstance(value, str) and split_override(f"key={value}")[1] == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def of_runs(job: Job) -> Runs:
    """The configuration of the run, or of each run of an array. Raises UserError unless all of them are valid and different."""
    settings = [f"{job.array.key}={value}" for value in job.array.values] if job.array else []
    loaded = [configfile.load(Path(job.config), [*job.settings, setting]) for setting in settings]
    loaded = loaded or [configfile.load(Path(job.config), list(job.settings))]
    return Runs([config for config, _ in loaded], settings or [""], loaded[0][1])


def of_study(job: Job) -> StudyWork:
    """The study in the directory of the job. Raises UserError where there is none, or where it has fewer points than shards."""
    folder = Path(job.out)
    points.refuse_missing_plugins(folder, [Path(file) for file in job.plugins])
    recipe = points.read(folder, job.settings)
    number = len(recipe.planned)
    if job.shards > number:
        raise UserError(f"--shards {job.shards}: the study in {folder} has {count(number, 'point')} only; give at most {number}")
    return StudyWork(number, recipe.comm.backend, recipe.notes)
