"""A study against the same runs one after the other: wall time, bits, and what a point costs beside its training."""

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flora_hpc.bench.methods import processor
from flora_hpc.bench.scale import starter
from flora_hpc.comm import launch
from flora_hpc.errors import UserError
from flora_hpc.records.study import FOLDER, Study, open_study
from flora_hpc.studies import points
from flora_hpc.versions import versions


def check() -> None:
    """Raise UserError where a launcher has started this process: the measurement starts its ranks itself."""
    if (size := launch.detect().size) > 1:
        raise UserError(f"bench study starts its ranks itself, but the launcher started {size} of it; start one")


def measure(
    words: Sequence[str],
    num_ranks: int,
    launcher: str | None,
    with_lone_runs: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Play the study of `words`, the arguments of `flora-hpc study`; then each of its points as a run of its own.

    Both use `num_ranks` ranks: the study plays a point on each, a lone run has all of them. Raises UserError where a run fails.
    """
    start = starter(launcher)(num_ranks) if num_ranks > 1 else starter("torchrun")(1)[:1]
    with tempfile.TemporaryDirectory(prefix="flora-hpc-bench-") as name:
        folder = Path(name)
        progress(f"the study on {num_ranks} rank{'s' * (num_ranks > 1)}")
        study_seconds = _seconds([*start, "-m", "flora_hpc", "study", *words, "--quiet", "--out", str(folder / "study")])
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        study = open_study(folder / "study")
        lone = _play_alone(study, start, folder, progress) if with_lone_runs else {}
        train = sum(point.train_seconds for point in study.rows)
        return {
            "num_points": len(study.rows),
            "num_settings": len({str(point.setting) for point in study.rows}),
            "num_ranks": num_ranks,
            "study_seconds": study_seconds,
            "train_seconds": train,
            "other_seconds_a_point": (study_seconds * num_ranks - train) / len(study.rows),
            "peak_bytes": peak,  # of the process with most
            "lone_seconds": sum(lone.values()) or None,
            "ratio": study_seconds / sum(lone.values()) if lone else None,
            "num_equal": sum(_adapter(study.path / FOLDER / name) == _adapter(folder / "lone" / name) for name in lone)
            if lone
            else None,
            "processor": processor(),
            "versions": versions(),
        }


def _seconds(command: Sequence[str]) -> float:
    """Run a command; its wall time. Raises UserError when it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, env=dict(os.environ))
    if done.returncode:
        raise UserError(f"the program failed with exit code {done.returncode}; what it said stands above")
    return time.perf_counter() - started


def _play_alone(study: Study, start: Sequence[str], folder: Path, progress: Callable[[str], None]) -> Mapping[str, float]:
    """Play every point as a run of its own; the seconds of each."""
    recipe, seconds = points.read(study.path), {}
    for number, item in enumerate(recipe.planned, 1):
        progress(f"run {number} of {len(recipe.planned)}: {item.point.name}")
        config = folder / "config.yaml"
        config.write_text(item.config.to_yaml(), encoding="utf-8")
        out = folder / "lone" / item.point.name
        seconds[item.point.name] = _seconds([*start, "-m", "flora_hpc", "run", str(config), "--quiet", "--out", str(out)])
    return seconds


def _adapter(run: Path) -> bytes:
    """The bytes of the files of a run's adapter."""
    return b"".join(file.read_bytes() for file in sorted((run / "adapter").iterdir()))
