"""A study made up for tests: points whose files are written one after the other, as their player writes them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from flora_hpc.records.hdf5file import Writer
from flora_hpc.records.study import FOLDER, Point, write_index, write_row
from tests.contracts.known_helpers import round_record, run_info


class MadeStudy:
    """Points of two methods and several seeds; each run has two rounds of a second."""

    def __init__(self, folder: Path, num_seeds: int = 3) -> None:
        keys: list[dict[str, Any]] = [
            {"method.name": name, "seed": seed} for name in ("flora", "fedlc") for seed in range(num_seeds)
        ]
        self.folder = folder
        self.points = [Point(f"{values['method.name']}-{values['seed']}", values) for values in keys]
        self._writers: dict[str, Writer] = {}

    def write(self) -> "MadeStudy":
        """Write study.h5, as `--prepare` does."""
        (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
        write_index(self.folder, self.points)
        return self

    def begin(self, at: int, num_rounds: int = 0) -> None:
        """A point begins, and ends round 0 and `num_rounds` others."""
        place = self.folder / FOLDER / self.points[at].name
        place.mkdir(parents=True, exist_ok=True)
        (place / "run.h5").unlink(missing_ok=True)
        self._writers[self.points[at].name] = writer = Writer(place / "run.h5", run_info())
        for number in range(num_rounds + 1):
            writer.add(round_record(number, accuracy=0.25 * number))

    def end(self, at: int, status: str = "finished", seconds: float = 4.5, **changes: Any) -> None:
        """A point that has begun ends."""
        self._writers.pop(self.points[at].name).close(status)
        values = {"num_rounds": 2, "final_test_accuracy": 0.5, "best_test_accuracy": 0.75, "setup_seconds": 1.5}
        write_row(self.folder, replace(self.points[at], status=status, **(values | {"round_seconds": seconds - 1.5} | changes)))

    def play(self, at: int, status: str = "finished", **changes: Any) -> None:
        """A whole point."""
        self.begin(at, 2)
        self.end(at, status, **changes)

    def file(self, at: int, name: str) -> Path:
        """A file of a point."""
        return self.folder / FOLDER / self.points[at].name / name
