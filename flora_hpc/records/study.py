"""A study for reading: its points, and the status and the results of each.

    DIR/study.yaml               the configuration, and the grid of points
    DIR/study.h5                 /points: a row a point, written at the start and at the end of `flora-hpc study`
    DIR/points/NAME/             the run directory of a point
    DIR/points/NAME/point.json   the newest row of this point, written when its run ends

A point without point.json is waiting, or its run.h5 shows how far it is. So any node can read a study while it is played.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from flora_hpc import extras, yamltext
from flora_hpc.errors import UserError, did_you_mean, reason
from flora_hpc.owner import claim, living
from flora_hpc.records import disk, views
from flora_hpc.records.opened import Run, open_run

if TYPE_CHECKING:
    import pandas as pd

INDEX, RECIPE, FOLDER, ROW = "study.h5", "study.yaml", "points", "point.json"
SCHEMA = 1
DATA = ("model weights", "images", "labels", "captions")  # names in the identity of a run
STATUSES = ("waiting", "running", "finished", "stopped", "failed")
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError)
NAN = float("nan")


@dataclass(frozen=True)
class Point:
    """One run of a study: the keys that the grid sets, and what came out. Accuracies are shares, NaN where not measured."""

    name: str  # of its run directory in DIR/points
    keys: dict[str, Any] = field(default_factory=dict)  # dotted key -> value, `seed` included
    status: str = "waiting"  # one of STATUSES
    message: str = ""  # why it failed
    num_rounds: int = 0  # trained so far
    final_test_accuracy: float = NAN
    best_test_accuracy: float = NAN
    best_round: int = -1  # with the best test accuracy; -1 for none
    final_validation_accuracy: float = NAN
    best_validation_accuracy: float = NAN
    chosen_test_accuracy: float = NAN  # test accuracy in the round with the best validation accuracy
    final_personal_accuracy: float = NAN  # mean over the clients that were tested
    uplink_bytes: int = 0  # over all rounds
    downlink_bytes: int = 0
    num_ranks: int = 0
    train_seconds: float = 0.0  # training alone, mean over ranks, over all rounds
    round_seconds: float = 0.0  # all rounds
    setup_seconds: float = 0.0  # before round 0
    data_digest: str = ""  # of weights, images, labels and captions

    @property
    def setting(self) -> dict[str, Any]:
        """The keys without the seed: points with equal settings are repetitions."""
        return {key: value for key, value in self.keys.items() if key != "seed"}


TEXTS = {"name": str, "keys": dict, "status": str, "message": str, "data_digest": str}
NUMBERS = {field.name: "i8" if field.type is int else "f8" for field in fields(Point) if field.name not in TEXTS}
DTYPE = np.dtype([*((name, h5py.string_dtype()) for name in TEXTS), *NUMBERS.items()])


@dataclass(frozen=True, eq=False, repr=False)
class Study:
    """The points of a study when it was opened, in the order of the grid; open it again to see later ones."""

    path: Path
    rows: tuple[Point, ...]

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The keys that the grid sets, without the seed, in its order."""
        return tuple(dict.fromkeys(key for point in self.rows for key in point.setting))

    @cached_property
    def points(self) -> "pd.DataFrame":
        """A row a point: name, keys, status and results."""
        extras.need("a frame of a study", "pandas", otherwise="; `Study.rows` has the same values")
        import pandas as pd

        columns = (*self.keys, *(["seed"] if any("seed" in point.keys for point in self.rows) else []))
        rows = []
        for point in self.rows:
            values = asdict(point)
            rows.append({"name": values["name"]} | {key: _cell(point.keys.get(key)) for key in columns} | values)
            del rows[-1]["keys"]
        return pd.DataFrame(rows)

    @cached_property
    def rounds(self) -> "pd.DataFrame":
        """The rows of /rounds of all points that have begun, beside the keys and the name of each point."""
        extras.need("a frame of a study", "pandas", otherwise="; flora_hpc.open_run has the same rows by point")
        import pandas as pd

        frames = [
            run.rounds.assign(name=point.name, **{key: _cell(value) for key, value in point.keys.items()})
            for point in self.rows
            if (run := self.run(point, ("rounds",)))
        ]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def run(self, point: Point | str, tables: Sequence[str] = ("rounds",)) -> Run | None:
        """The run of a point, which may be given by its name; None where it has not begun. Raises UserError for another name."""
        name = point if isinstance(point, str) else point.name
        if name not in [row.name for row in self.rows]:
            raise UserError(f"{self.path}: has no point {name!r}{did_you_mean(name, [row.name for row in self.rows])}")
        folder = self.path / FOLDER / name
        return open_run(folder, tables) if (folder / "run.h5").is_file() else None

    def count(self, status: str) -> int:
        """How many points have a status."""
        return sum(point.status == status for point in self.rows)

    def __repr__(self) -> str:
        counts = [f"{self.count(status)} {status}" for status in STATUSES if self.count(status)]
        return f"Study({str(self.path)!r}: {views.count(len(self.rows), 'point')}; {', '.join(counts)})"


def open_study(path: str | Path) -> Study:
    """Open a study, finished or still being played. `path` is the study's directory, or its study.h5.

    Raises UserError where there is no study, or where its index is damaged or of a newer version.
    """
    folder = Path(path)
    folder = folder.parent if folder.name == INDEX else folder
    if not (folder / FOLDER).is_dir():  # study.h5 was copied alone
        return Study(folder, tuple(read_index(folder)))
    return Study(folder, tuple(newest(folder, point) for point in read_index(folder)))


def read_index(folder: Path) -> list[Point]:
    """The points in study.h5. Raises UserError like `open_study`."""
    file = folder / INDEX
    if not file.is_file():
        raise UserError(f"{folder}: holds no study (looked for {file}); give the directory of `flora-hpc study --out`")
    try:
        with h5py.File(file, "r", locking=False) as index:
            if (schema := int(index.attrs["schema"])) > SCHEMA:
                raise UserError(f"{file}: was written by a newer flora-hpc (schema {schema}, here {SCHEMA}); update flora-hpc")
            rows = index["points"][:]
        return [_point(row) for row in rows]
    except DAMAGE as error:
        raise UserError(
            f"{file}: cannot be read ({reason(error) if isinstance(error, OSError) else error}); "
            "`flora-hpc study --resume` on its directory writes it anew"
        ) from None


def _cell(value: Any) -> Any:
    """A value of the grid in a frame: lists and mappings as texts, which pandas can group by."""
    return yamltext.inline(value) if isinstance(value, list | dict) else value


def _point(row: np.void) -> Point:
    names = row.dtype.names or ()
    texts = {name: row[name].decode() for name in TEXTS}
    numbers = {name: row[name].item() for name in NUMBERS if name in names}
    return Point(**(texts | numbers | {"keys": json.loads(texts["keys"])}))


def write_index(folder: Path, points: Iterable[Point]) -> None:
    """Write study.h5, whole or not at all. Raises UserError where that is not possible."""
    rows = [
        tuple(json.dumps(point.keys) if name == "keys" else getattr(point, name) for name in DTYPE.names or ()) for point in points
    ]
    part = disk.part_of(folder / INDEX)
    try:
        with h5py.File(part, "w", locking=False) as index:
            index.attrs["schema"] = SCHEMA
            index.create_dataset("points", data=np.array(rows, DTYPE))
        disk.commit(part, folder / INDEX)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        why = reason(error) if isinstance(error, OSError) else error
        raise UserError(f"{folder / INDEX}: cannot be written ({why}); make room on its disk, or make it writable") from None


def newest(folder: Path, point: Point) -> Point:
    """The row of a point now: that of its point.json, or, while its run is played, how far its run.h5 shows it to be."""
    place = folder / FOLDER / point.name
    try:
        values = json.loads((place / ROW).read_bytes())
        if not isinstance(values, dict):
            raise TypeError(f"holds a {type(values).__name__}, not an object")
        row: dict[str, Any] = {name: str(values[name]) for name in ("status", "message", "data_digest") if name in values}
        row |= {name: _number(name, values[name]) for name in NUMBERS if name in values}
        return replace(point, **row)
    except FileNotFoundError:
        return replace(Point(point.name, point.keys), status=_status_without_row(place))
    except (OSError, ValueError, TypeError) as error:
        return replace(point, status="failed", message=f"{place / ROW}: cannot be read ({error}); --resume plays this point again")


def _status_without_row(place: Path) -> str:
    """The status of a point whose run has begun or not, but has not ended in good order: its owner lives, or was killed."""
    if not (place / "run.h5").exists():
        return "waiting"
    try:
        number = claim.newest(place)
        file = claim.path(place, number)
        lives = living.lives(claim.read(place, number), time.time() - file.stat().st_mtime) if number else None
    except (OSError, UserError):  # files that vanish, or a Slurm that does not answer
        lives = None
    return "stopped" if lives is False else "running"


def _number(name: str, value: Any) -> float:
    """A number of point.json; null is NaN. Raises TypeError or ValueError for anything else."""
    if value is None and NUMBERS[name] == "f8":
        return NAN
    return int(value) if NUMBERS[name] == "i8" else float(value)


def write_row(folder: Path, point: Point) -> None:
    """Write point.json, whole or not at all: NaN and infinity, which JSON lacks, as null. Raises OSError."""
    place = folder / FOLDER / point.name
    place.mkdir(parents=True, exist_ok=True)
    values = asdict(point) | {"time": time.strftime("%Y-%m-%d %H:%M:%S")}
    disk.write_whole(place / ROW, json.dumps(for_json(values), allow_nan=False))


def for_json(value: Any) -> Any:
    """A value of dictionaries, lists and scalars with null for NaN and infinity."""
    if isinstance(value, dict):
        return {key: for_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def one_line(text: str) -> str:
    """A text on one line of UTF-8, without control characters, which HDF5 and JSON files of other programs may not hold."""
    words = "".join(letter if letter.isprintable() else " " for letter in text).split()
    return " ".join(words).encode(errors="backslashreplace").decode()


def _data_digest(run: Run) -> str:
    """A digest of the digests of weights and data in a run's identity."""
    identity = json.loads(run.attributes.get("identity", "{}"))
    return hashlib.blake2b(json.dumps([identity.get(name, "") for name in DATA]).encode(), digest_size=8).hexdigest()


def result(point: Point, run: Run) -> Point:
    """The row of a point with the results of its run, as far as it is."""
    rows = run.tables["rounds"]
    tests, chosen_on, own = views.accuracies(rows), views.validations(rows), views.personal(rows)
    values: dict[str, Any] = {}
    if len(tests):
        best = views.best(tests)
        values |= {"final_test_accuracy": tests[-1]["test_accuracy"], "best_test_accuracy": best["test_accuracy"]}
        values |= {"best_round": best["round"]}
    if len(chosen_on):
        best = views.best(chosen_on, "validation_accuracy")
        values |= {"final_validation_accuracy": chosen_on[-1]["validation_accuracy"]}
        values |= {"best_validation_accuracy": best["validation_accuracy"], "chosen_test_accuracy": best["test_accuracy"]}
    if len(own):
        values |= {"final_personal_accuracy": own[-1]["personal_accuracy_mean"]}
    sums = ("uplink_bytes", "downlink_bytes", "train_seconds", "round_seconds")
    return replace(
        point,
        status=run.status,
        num_rounds=int(rows["round"].max(initial=0)),
        data_digest=_data_digest(run),
        num_ranks=int(run.attributes["world_size"]),
        setup_seconds=float(run.attributes["setup_seconds"]),
        **{name: value.item() for name, value in values.items()},
        **{name: rows[name].sum().item() for name in sums},
    )
