"""run.h5: written while a run goes on (SWMR), readable at any moment, whole after any death."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flora_hpc.errors import UserError
from flora_hpc.records import disk, split
from flora_hpc.records.known import Earlier, RoundRecord, RunInfo
from flora_hpc.records.schema import SCHEMA, TABLES, Rows

CHUNK_ROWS = 256
SPARE_BYTES = 2**16


class Writer:
    """The file of one run. Rows are flushed with every round, those of /rounds last: a round that is there is complete.

    A run that goes on copies its earlier rows into a new file, which then takes the old one's place.
    """

    def __init__(self, path: Path, info: RunInfo) -> None:
        self._path, self._lost = path, False
        if path.exists() and not info.earlier:
            raise FileExistsError(f"{path} is there already")
        new = path.with_name(f"{path.name}.part")  # a run that is killed meanwhile leaves no half file
        self._file = h5py.File(new, "w", libver="latest")
        try:
            with self._let_go_of_what_fails():
                self._begin(info)
            disk.settle(new, path)
        except (OSError, RuntimeError):
            with suppress(OSError):
                new.unlink()
            raise

    def _begin(self, info: RunInfo) -> None:
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

    def _append(self, table: str, rows: Rows) -> None:
        dataset = self._tables[table]
        with self._let_go_of_what_fails():
            before = len(dataset)
            dataset.resize(before + len(rows), axis=0)
            if len(rows):
                dataset[before:] = rows
            dataset.flush()

    @contextmanager
    def _let_go_of_what_fails(self) -> Iterator[None]:
        try:
            with letting_go(self._file):
                yield
        except (OSError, RuntimeError):
            self._lost = True
            raise

    def add(self, record: RoundRecord) -> None:
        self._append("clients", record.clients)
        self._append("ranks", record.ranks)
        self._append("rounds", record.row)

    def close(self, status: str) -> None:
        """Close and note how the run ended: finished, stopped, interrupted or failed. A file that was let go of stays as it is."""
        if not self._lost:
            with self._let_go_of_what_fails():
                make_room(self._path)
                self._file.flush()
        self._file.close()
        if self._lost:
            return
        part = self._path.with_name(f"{self._path.name}.part")  # HDF5 refuses a file whose writer was killed just then
        try:
            shutil.copyfile(self._path, part)
            make_room(part)
            with h5py.File(part, "r+", libver="latest") as file, letting_go(file):
                file.attrs["status"] = status
                file.flush()
            disk.settle(part, self._path)
        finally:
            with suppress(OSError):  # it is gone, or the disk is read-only
                part.unlink()


def make_room(path: Path) -> None:
    """Let a file have room at its end for what HDF5 may write there; one that it could not flush it cannot close either."""
    with path.open("ab") as file:
        file.write(bytes(SPARE_BYTES))
    disk.sync(path)


@contextmanager
def letting_go(file: h5py.File) -> Iterator[None]:
    """When the disk takes no more, leave the file there as a kill would leave it, and HDF5 a copy in memory.

    HDF5 writes what is left whenever it closes a file, at the exit of the process too, and crashes where it cannot.
    """
    try:
        yield
    except (OSError, RuntimeError):
        opened, memory = file.id.get_vfd_handle(), os.memfd_create("run.h5")
        with open(opened, "rb", closefd=False) as lost, open(memory, "wb") as copy:
            lost.seek(0)
            shutil.copyfileobj(lost, copy)
            copy.flush()
            os.dup2(memory, opened)
        raise


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
