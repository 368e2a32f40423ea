"""run.h5: written while a run goes on (SWMR), readable at any moment, whole after any death."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flora_hpc.errors import UserError
from flora_hpc.records import disk, split
from flora_hpc.records.known import Earlier, RoundRecord, RunInfo
from flora_hpc.records.schema import SCHEMA, TABLES, Rows

CHUNK_ROWS = 256


class Writer:
    """The file of one run. Rows are flushed with every round, those of /rounds last: a round that is there is complete.

    A run that goes on copies its earlier rows into a new file, which then takes the old one's place.
    """

    def __init__(self, path: Path, info: RunInfo) -> None:
        self._path = path
        if path.exists() and not info.earlier:
            raise FileExistsError(f"{path} is there already")
        new = path.with_name(f"{path.name}.part")  # a run that is killed meanwhile leaves no half file
        self._file = h5py.File(new, "w", libver="latest")
        attributes = {
            "schema": SCHEMA,
            "status": "running",
            "seed": info.seed,
            "config": info.config,
            "versions": json.dumps(info.versions),
            "launcher": info.launcher,
            "backend": info.backend,
            "world_size": info.world_size,
            "dataset": info.dataset,
            "features": info.features,
            "features_made_by": info.features_made_by,
            "num_features_computed": info.num_features_computed,
            "num_damaged": info.num_damaged,
            "num_clients": info.num_clients,
            "num_params": info.num_params,
            "payload_bytes": info.payload_bytes,
            "how": info.how,
            "group_size": info.group_size,
            "num_groups": info.num_groups,
            "setup_seconds": info.setup_seconds,
            "resumed_after": json.dumps(info.earlier.resumed_after if info.earlier else []),
        }
        self._file.attrs.update(attributes)
        self._tables = {  # looked up once: by name in every round, they would take longer than what is written
            name: self._file.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(CHUNK_ROWS,))
            for name, dtype in TABLES.items()
        }
        if info.split is not None:
            split.write(self._file, info.split)
        self._append("topology", info.topology)
        for name in ("clients", "ranks", "rounds") if info.earlier else ():
            self._append(name, getattr(info.earlier, name))
        self._file.swmr_mode = True  # from here on neither attributes nor tables can be added
        self._file.flush()
        disk.settle(new, path)

    def _append(self, table: str, rows: Rows) -> None:
        dataset = self._tables[table]
        before = len(dataset)
        dataset.resize(before + len(rows), axis=0)
        if len(rows):
            dataset[before:] = rows
        dataset.flush()

    def add(self, record: RoundRecord) -> None:
        self._append("clients", record.clients)
        self._append("ranks", record.ranks)
        self._append("rounds", record.row)

    def close(self, status: str) -> None:
        """Close and note how the run ended: finished, stopped, interrupted or failed."""
        self._file.close()
        with h5py.File(self._path, "r+", libver="latest", locking=False) as file:  # a reader may have it open
            file.attrs["status"] = status


def earlier(run: Path, last: int, logged: int, told: list[str]) -> Earlier:
    """What a run that goes on after round `last` holds up to round `logged`; rows of rounds that will be played again are left out.

    `told` is why newer checkpoints are not used. Raises UserError for a file that is not a run's.
    """
    attributes, tables = read(run)
    kept = {name: rows[rows["round"] <= logged] for name, rows in tables.items() if name != "topology"}
    return Earlier(**kept, resumed_after=[*json.loads(attributes.get("resumed_after", "[]")), last], told=told)


def locate(run: Path) -> Path:
    """The run.h5 of a run directory, or the file itself. Raises UserError when there is none."""
    path = run / "run.h5" if run.is_dir() else run
    if not path.is_file():
        raise UserError(f"{run}: holds no run (looked for {path}); give a run directory or its run.h5")
    return path


def read(run: Path) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Attributes and tables of a run, finished or not. Raises UserError for a file that is not a run's."""
    path = locate(run)
    try:
        with h5py.File(path, "r", libver="latest", swmr=True) as file:
            attributes = {name: value.item() if isinstance(value, np.generic) else value for name, value in file.attrs.items()}
            tables = {name: file[name][:] for name in TABLES if isinstance(file.get(name), h5py.Dataset)}
    except OSError as error:
        raise UserError(f"{path}: is not an HDF5 file that can be read ({error})") from None
    if attributes.get("schema", 0) > SCHEMA:
        raise UserError(
            f"{path}: was written by a newer flora-hpc (schema {attributes['schema']}, here {SCHEMA}); update flora-hpc"
        )
    if "schema" not in attributes or len(tables) < len(TABLES):
        raise UserError(f"{path}: is an HDF5 file, but not one that flora-hpc wrote")
    last = tables["rounds"]["round"].max(initial=-1)  # rows of a round that was not finished are left out
    for name in ("ranks", "clients"):
        tables[name] = tables[name][tables[name]["round"] <= last]
    return attributes, {name: np.asarray(rows) for name, rows in tables.items()}
